"""`python -m fourm_lite` is the command `fourm-lite`."""

from fourm_lite.cli import main

if __name__ == "__main__":
    main()
