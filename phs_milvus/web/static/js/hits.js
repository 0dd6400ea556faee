// The hits: cards with boxes and scores. Those far down are made when they come near the window.

import { imageOf } from "./api.js";
import { $, make, plural, showDialog, svg } from "./dom.js";

const PAGE = 48; // cards made at a time
const SCORES = [
  ["Stage one", "ann_score", "ann_rank"], ["Query-DB", "query_db_score", "query_db_rank"],
  ["Mean of both", "blend_score"], ["With location", "localized_score"],
];

const fixed = (score) => (score == null ? "–" : score.toFixed(3));

/** Boxes over a picture that is shown whole, in the middle of its card. */
export function boxesOver(where) {
  const layer = svg("svg", { class: "boxes", viewBox: `0 0 ${where.width} ${where.height}`, "aria-hidden": "true" });
  // A box around all of the picture says nothing of where.
  const telling = where.boxes.filter(({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0) < 0.95 * where.width * where.height);
  telling.slice(0, 5).forEach(({ box: [x0, y0, x1, y1] }, index) => {
    const at = { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 1 };
    if (!index) layer.append(svg("rect", { ...at, class: "box under" }));
    layer.append(svg("rect", { ...at, class: index ? "box over lesser" : "box over" }));
  });
  return layer;
}

function parts(hit) {
  const cells = SCORES.filter(([, name]) => hit[name] != null).flatMap(([title, name, rank]) => [
    make("span", { textContent: title }), make("b", { textContent: fixed(hit[name]) }),
    make("i", { textContent: rank && hit[rank] ? `#${hit[rank]}` : "" }),
  ]);
  return make("span", { className: "parts" }, ...cells);
}

const THUMBNAIL = devicePixelRatio > 1.3 ? 512 : 256;

export function picture(id, size = THUMBNAIL) {
  const look = make("button", { type: "button", className: "look" });
  const image = make("img", { src: imageOf(id, size), alt: "", loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => {
    look.classList.add("missing");
    look.dataset.missing = "no picture here";
  });
  look.append(image);
  return look;
}

function card(hit, use) {
  const look = picture(hit.id);
  look.setAttribute("aria-label", `Hit ${hit.rank}, ${hit.id}, score ${fixed(hit.score)}: use it as the query`);
  look.addEventListener("click", () => use(hit));
  look.append(parts(hit));
  const element = make(
    "figure", { className: "card" }, look,
    make(
      "figcaption", { className: "caption" }, make("span", { className: "rank", textContent: hit.rank }),
      make("span", { className: "score", textContent: fixed(hit.score) }),
      make(
        "button", { type: "button", className: "info", title: "Scores and metadata", onclick: () => details(hit) },
        svg("svg", { viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("circle", { cx: 10, cy: 10, r: 7.5 }), svg("path", { d: "M10 9.500v4M10 6.500v.01" })),
      ),
      make("span", { className: "name", textContent: hit.id, title: hit.id }),
    ),
  );
  element.querySelector(".info").setAttribute("aria-label", `Scores and metadata of hit ${hit.rank}`);
  hit.show = () => {
    look.querySelector(".boxes")?.remove();
    if (hit.boxes) look.insertBefore(boxesOver(hit), look.querySelector(".parts"));
    look.querySelector(".parts").replaceWith(parts(hit));
  };
  hit.show();
  return element;
}

function details(hit) {
  const row = (name, value) =>
    make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: value }));
  const rows = SCORES.filter(([, name]) => hit[name] != null).map(([title, name, rank]) =>
    row(title, `${hit[name].toFixed(4)}${rank && hit[rank] ? `, rank ${hit[rank]}` : ""}`),
  );
  if (hit.boxes) rows.push(row("Boxes", hit.boxes.map(({ box, score }) => `${box.join(", ")} (${fixed(score)})`).join("; ")));
  if (hit.error) rows.push(row("Not located", hit.error));
  const fields = Object.entries(hit.fields ?? {}).map(([name, value]) =>
    row(name, typeof value === "object" ? JSON.stringify(value) : String(value)),
  );
  const image = make("img", { src: imageOf(hit.id, 1600), alt: "" });
  image.addEventListener("error", () => image.remove());
  showDialog(String(hit.id), image, make("table", {}, make("tbody", {}, ...rows, ...fields)));
}

/** A list of hits under a heading; `near(hits)` is called with those that are about to be seen. */
export function hitList(title, hits, use, near) {
  const grid = make("div", { className: "grid" });
  const end = make("div");
  let made = 0;
  const more = () => {
    const next = hits.slice(made, made + PAGE);
    made += next.length;
    grid.append(...next.map((hit) => card(hit, use)));
    if (next.length) near(next);
    if (made >= hits.length) watcher.disconnect();
  };
  const watcher = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && more(), {
    rootMargin: "600px",
  });
  more();
  watcher.observe(end);
  if (made >= hits.length) watcher.disconnect();
  return make("section", {}, title ? make("h2", { textContent: title }) : null, hits.length ? grid : nothing(), end);
}

const nothing = () =>
  make("div", { className: "nothing" }, make("p", { textContent: "Nothing was found. A filter or the least score may leave everything out." }));

export const countOf = (answer, ms) => `${plural(answer.hits.length, "hit")} in ${Math.round(ms)} ms`;

export const clearResults = () => $("results").replaceChildren();
