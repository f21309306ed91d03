#!/usr/bin/env bash
# diffusers: one `timestep_spacing`, two sets of timesteps; a scheduler swapped by from_config stops at another noise level.
#
# Behaviour: with timestep_spacing="leading" and n steps, DDIM and Euler divide the 1000 training steps by n and end at
#   timestep 0; DPM-Solver++, UniPC and DEIS divide by n + 1, start later and end far from 0. "trailing" is the same in all.
# Why a guess is wrong: `DPMSolverMultistepScheduler.from_config(ddim.config)` is the documented way to go to a faster
#   solver, it carries the spacing's name over, and both get the same n.
# Who meets it: whoever replaces DDIM by a faster solver in a diffusion decoder with few steps (a tokenizer's decoder,
#   super-resolution): at 3 steps the first call to the network is at 750 instead of 666 and the last at 250
#   instead of 0, so a comparison "same steps, other solver" compares other noise levels.
# Instead: choose "trailing" for both, or set the timesteps oneself.
#
# Seen with diffusers 0.42.1 on torch 2.13.0:
#   leading, 3 steps: DDIMScheduler [666, 333, 0], EulerDiscreteScheduler [666, 333, 0]
#   leading, 3 steps: DPMSolverMultistepScheduler [750, 500, 250], UniPCMultistepScheduler [750, 500, 250], DEISMultistepScheduler [750, 500, 250]
#   trailing, 3 steps: all [999, 666, 332]
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 scipy
"$work/env/bin/python" -W ignore - <<'PY'
import diffusers
from diffusers import (DDIMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
                       EulerDiscreteScheduler, UniPCMultistepScheduler)

print("diffusers", diffusers.__version__)


def steps(kind, spacing):
    scheduler = kind.from_config(DDIMScheduler(timestep_spacing=spacing).config)
    scheduler.set_timesteps(3)
    return [int(t) for t in scheduler.timesteps]


from_zero = (DDIMScheduler, EulerDiscreteScheduler)
from_later = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler)
for kinds, expected in ((from_zero, [666, 333, 0]), (from_later, [750, 500, 250])):
    print("leading, 3 steps:", ", ".join(f"{k.__name__} {steps(k, 'leading')}" for k in kinds))
    assert all(steps(kind, "leading") == expected for kind in kinds), "the spacings agree now"
trailing = {tuple(steps(kind, "trailing")) for kind in from_zero + from_later}
print("trailing, 3 steps: all", list(*trailing))
assert trailing == {(999, 666, 332)}
PY
