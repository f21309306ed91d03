// Shows /openapi.json as a page.
import { element, make } from "./server.js";

// "string or array"; 1 to 1000
function kindOf(field) {
  const kinds = (field.oneOf ?? [field]).map((one) => one.type).join(" or ");
  return field.maximum === undefined ? kinds : `${kinds}, ${field.minimum} to ${field.maximum}`;
}

for (const place of document.querySelectorAll(".origin")) place.textContent = location.origin;

const description = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const fields = about.requestBody?.content["application/json"].schema.properties ?? {};
    const rows = Object.entries(fields).map(([name, field]) =>
      make("tr", {}, make("th", { textContent: name }), make("td", { textContent: kindOf(field) }), make("td", { textContent: field.description })));
    for (const given of about.parameters ?? [])
      rows.push(make("tr", {}, make("th", { textContent: given.name }), make("td", { textContent: given.in }), make("td")));
    element("paths").append(
      make("h2", { textContent: `${method.toUpperCase()} ${path}` }),
      make("p", { textContent: about.summary }),
      make("table", {}, ...rows));
  }
}
