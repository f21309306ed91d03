// Talks to the server: JSON, a token if it wants one, and photos by their ids.

export const element = (id) => document.getElementById(id);

let token = sessionStorage.getItem("token") || "";

function headers(more) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

export async function ask(path, body, signal) {
  const post = body && {
    method: "POST",
    body: JSON.stringify(body),
    signal,
  };
  const kind = body ? { "Content-Type": "application/json" } : {};
  const answer = await fetch(path, { ...post, headers: headers(kind) });
  if (answer.status === 401) element("token-form").hidden = false;
  if (!answer.ok) {
    let told;
    try { told = (await answer.json()).error; } catch { told = `${answer.status} ${answer.statusText}`; }
    throw new Error(told);
  }
  return answer;
}

export async function showPhoto(image, id, side = 256) {
  const path = `/items/${encodeURIComponent(id)}/thumbnail?side=${side}`;
  if (!token) {
    image.src = path;
    return;
  }
  const answer = await ask(path);
  image.src = URL.createObjectURL(await answer.blob());
}

// A picture as base64, no larger than the model can use: phones make 12 megapixels.
export async function pictureOf(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

export function say(place, text, bad = false) {
  place.textContent = text;
  place.classList.toggle("bad", bad);
}

export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

element("token-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  token = element("token").value.trim();
  sessionStorage.setItem("token", token);
  element("token-form").hidden = true;
  document.dispatchEvent(new Event("token"));
});
