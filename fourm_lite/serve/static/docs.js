// Shows /openapi.json as a page.
import { element, make } from "./server.js";

const description = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, about] of Object.entries(methods)) {
    const fields = about.requestBody?.content["application/json"].schema.properties ?? {};
    const rows = Object.entries(fields).map(([name, field]) =>
      make("tr", {}, make("th", { textContent: name }), make("td", { textContent: field.type ?? "" }), make("td", { textContent: field.description })));
    for (const given of about.parameters ?? [])
      rows.push(make("tr", {}, make("th", { textContent: given.name }), make("td", { textContent: given.in }), make("td")));
    element("paths").append(
      make("h2", { textContent: `${method.toUpperCase()} ${path}` }),
      make("p", { textContent: about.summary }),
      make("table", {}, ...rows));
  }
}
