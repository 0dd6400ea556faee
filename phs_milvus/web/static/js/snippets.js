// The search on the screen as Python, as curl and as a command.

import { $, copyText, make, showDialog } from "./dom.js";
import { asJson, searchBody, zoomsOf } from "./requests.js";
import { isPointed, state } from "./state.js";

const python = (value) =>
  value === true ? "True" : value === false ? "False" : value == null ? "None" : Array.isArray(value) ? `[${value.map(python).join(", ")}]` : JSON.stringify(value);
const shell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${String(text).replaceAll("'", "'\\''")}'`);
const file = () => state.picture.name || "picture.jpg";
const pointed = () => isPointed() && state.settings.view !== "whole";

function pythonPrompt(prompt) {
  const { box, polygon, point, label } = asJson(prompt);
  if (box) return `Box(${box.join(", ")})`;
  if (polygon) return `Polygon([${polygon.map(([x, y]) => `(${x}, ${y})`).join(", ")}])`;
  return `Point(${point.join(", ")}${label === 0 ? ", label=0" : ""})`;
}

export function asPython() {
  const { picture, prompts, settings, info } = state;
  const all = pointed() ? prompts.map(pythonPrompt) : [];
  const focus = [];
  if (settings.heads != null) focus.push(`heads_on=${python(settings.heads)}`);
  if (settings.shift !== 1) focus.push(`attention_shift=${settings.shift}`);
  if (settings.zooms !== "0") focus.push(`zoom=(${zoomsOf(settings.zooms).join(", ")},)`);
  const names = [...new Set(all.map((text) => text.split("(")[0]))];
  const row = picture.kind === "row";
  const options = [`limit=${settings.limit}`, ...(settings.exclude ? ["exclude_query=True"] : [])];
  if (focus.length && all.length) options.push(`focus=Focus(${focus.join(", ")})`);
  if (!all.length) options.push('score="ann"');
  else if (!settings.rerank) options.push("rerank=False");
  else if (settings.score !== "blend") options.push(`score=${python(settings.score)}`);
  if (settings.min_score != null) options.push(`min_score=${settings.min_score}`);
  if (settings.filter) options.push(`filter=${python(settings.filter)}`);
  if (settings.localize && all.length) options.push(`localize=${settings.localize}`);
  const imported = [...names, "Encoder", ...(focus.length && all.length ? ["Focus"] : []), "FocusedCollection", "FocusedSearch", ...(row ? ["StoredImage"] : []), "connect"];
  const image = row ? `StoredImage(${python(picture.id)})` : python(file());
  const prompt = all.length > 1 ? `[${all.join(", ")}]` : (all[0] ?? "None");
  const root = info.places.images && !info.places.images.includes("://") ? `, image_root=${python(info.places.images)}` : "";
  return `from phs_milvus import ${imported.join(", ")}

collection = FocusedCollection.open(connect(${python(info.places.milvus)}), ${python(info.places.collection)})
with Encoder(${python(info.places.encoder ?? "127.0.0.1:50051")}) as encoder:  # ${info.places.encoder ? "a running phs-server" : `phs-server --model ${info.places.model || "MODEL"}`}
    search = FocusedSearch(collection, encoder${root})
    result = search.search(
        ${image},
        ${prompt},
        ${options.join(",\n        ")},
    )
    print(result)
`;
}

export function asCurl() {
  const body = searchBody(pointed());
  const address = location.origin;
  const token = $("logout").hidden ? "" : ' -H "Authorization: Bearer $TOKEN"';
  const send = state.picture.kind === "row" ? "" : `curl${token} --data-binary @${shell(file())} ${address}/api/v1/pictures\n`;
  const sent = state.picture.scale !== 1 && state.picture.scale ? "# this page sent the picture made smaller, and the prompt is in pixels of that\n" : "";
  return `${sent}${send}curl${token} ${address}/api/v1/search -H "Content-Type: application/json" -d ${shell(JSON.stringify(body, null, 1))}\n`;
}

export function asCommand() {
  const { picture, prompts, settings, info } = state;
  const { places } = info;
  const words = [places.program, "search", picture.kind === "row" ? `--stored ${shell(picture.id)}` : shell(file())];
  for (const prompt of pointed() ? prompts : []) {
    const { box, polygon, point, label } = asJson(prompt);
    if (box) words.push(`--box=${box}`);
    else if (polygon) words.push(`--polygon "${polygon.map((pair) => pair.join(",")).join(" ")}"`);
    else words.push(`--point=${point}${label === 0 ? ",,0" : ""}`);
  }
  if (pointed()) {
    if (settings.heads != null) words.push(`--heads ${settings.heads}`);
    if (settings.shift !== 1) words.push(`--roi ${settings.shift}`);
    if (settings.zooms !== "0") words.push(`--zoom ${zoomsOf(settings.zooms)}`);
    if (settings.localize) words.push(`--localize ${settings.localize}`);
  }
  if (!pointed() || !settings.rerank) words.push("--no-rerank");
  else if (settings.score !== "blend") words.push(`--score ${settings.score}`);
  words.push(`--limit ${settings.limit}`);
  if (settings.exclude) words.push("--exclude-query");
  if (settings.min_score != null) words.push(`--min-score=${settings.min_score}`);
  if (settings.filter) words.push(`--filter ${shell(settings.filter)}`);
  if (places.images) words.push(picture.kind === "row" && !places.images.includes("://") ? `--root ${shell(places.images)}` : `--images ${shell(places.images)}`);
  words.push(`--milvus ${shell(places.milvus)}`, `--collection ${shell(places.collection)}`);
  if (places.encoder) words.push(`--encoder ${shell(places.encoder)}`);
  else if (places.model) words.push(`--model ${shell(places.model)}`);
  return `${words.join(" \\\n    ")}\n`;
}

const FORMS = { Python: asPython, curl: asCurl, "Command line": asCommand };

$("copy-button").addEventListener("click", () => {
  const text = make("pre", { tabIndex: 0 });
  const lite = make("p", { className: "quiet", textContent: "Milvus Lite takes one process at a time: end this page's server before you run this." });
  const radios = Object.entries(FORMS).map(([name, form], index) => {
    const radio = make("input", { type: "radio", name: "form", value: name, checked: !index });
    radio.addEventListener("change", () => fill(name, form));
    return make("label", {}, radio, make("span", { textContent: name }));
  });
  const fill = (name, form) => {
    text.textContent = form();
    lite.hidden = name === "curl" || !state.info.collection.lite;
  };
  fill("Python", asPython);
  showDialog(
    "This search as …",
    make("div", { className: "segments", role: "radiogroup" }, ...radios), text, lite,
    make("div", { className: "buttons" }, make("button", { type: "button", className: "primary", textContent: "Copy", onclick: () => copyText(text.textContent, "Copied.") })),
  );
});
