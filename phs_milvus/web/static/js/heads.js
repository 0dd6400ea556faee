// What the model sees: the prompt on its patches, and what each attention head looks at.

import { $, make } from "./dom.js";
import { isPointed, state } from "./state.js";

const SIDE = 136; // pixels of a head's picture, shown at half of that
const TINT = [255, 122, 46];

/** A grid of numbers as a picture of that many pixels, tinted, with alpha from 0 to `most`. */
function asPicture(grid, largest, most, power = 1) {
  const [rows, columns] = [grid.length, grid[0].length];
  const canvas = make("canvas", { width: columns, height: rows });
  const image = new ImageData(columns, rows);
  grid.flat().forEach((value, index) => {
    const share = Math.min(1, value / largest) ** power;
    image.data.set([...TINT, Math.round(255 * most * share)], 4 * index);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Draws the prompt on the patch grid over the picture; nothing without one. */
function drawPatches(seen) {
  const canvas = $("patches");
  canvas.hidden = !(seen?.mask && $("show-patches").checked);
  if (canvas.hidden) return;
  const [rows, columns] = seen.grid;
  const [x0, y0, x1, y1] = seen.region;
  const [width, height] = [seen.width, seen.height];
  canvas.width = columns;
  canvas.height = rows;
  const share = (value, of) => `${(100 * value) / of}%`;
  Object.assign(canvas.style, {
    left: share(x0, width), top: share(y0, height), width: share(x1 - x0, width), height: share(y1 - y0, height),
  });
  canvas.getContext("2d").drawImage(asPicture(seen.mask, 1, 0.3), 0, 0);
}

/** One head: the picture where the head looks, dim elsewhere. */
function drawHead(canvas, grid, seen, picture) {
  const context = canvas.getContext("2d");
  const [x0, y0, x1, y1] = seen.region;
  const [fx, fy] = [picture.naturalWidth / seen.width, picture.naturalHeight / seen.height];
  const cut = [x0 * fx, y0 * fy, (x1 - x0) * fx, (y1 - y0) * fy];
  const [width, height] = [canvas.width, canvas.height];
  const largest = Math.max(...grid.flat()) || 1;
  context.imageSmoothingQuality = "high";
  context.drawImage(asPicture(grid, largest, 1, 0.7), 0, 0, width, height);
  context.globalCompositeOperation = "source-in";
  context.drawImage(picture, ...cut, 0, 0, width, height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "rgb(12 13 16 / 62%)";
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, ...cut, 0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.drawImage(asPicture(grid, largest, 0.34, 1.6), 0, 0, width, height);
}

/** Empty heads, so that nothing moves when the answer is there. */
function showPlaces() {
  $("heads-note").textContent = "\u00a0";
  const places = Array.from({ length: state.info?.model.heads ?? 0 }, () =>
    make("li", { className: "head" }, make("canvas", { width: SIDE, height: SIDE }), make("p", { textContent: "\u00a0" })),
  );
  $("heads").replaceChildren(...places);
}

let shown = null;

export function showHeads(seen) {
  shown = seen;
  $("heads-part").hidden = !seen && !state.picture;
  drawPatches(seen);
  if (!seen) return showPlaces();
  const picture = $("picture");
  const pointed = isPointed();
  const count = seen.attention.length;
  $("heads-note").textContent = pointed
    ? `${seen.kept.length} of ${count} kept: most on the prompt`
    : `all ${count}, until you point at something`;
  const ratio = (seen.region[2] - seen.region[0]) / (seen.region[3] - seen.region[1]);
  const items = seen.attention.map((grid, head) => {
    const canvas = make("canvas", {
      width: Math.round(Math.min(SIDE, SIDE * ratio)), height: Math.round(Math.min(SIDE, SIDE / ratio)),
      role: "img",
    });
    if (picture.naturalWidth) drawHead(canvas, grid, seen, picture);
    const kept = pointed && seen.kept.includes(head);
    const share = seen.head_scores ? `${Math.round(100 * seen.head_scores[head])} %` : "";
    canvas.setAttribute("aria-label", `Head ${head + 1}${share && `, ${share} on the prompt`}${kept ? ", kept" : ""}`);
    return make(
      "li", { className: `head${kept ? " kept" : ""}`, title: canvas.getAttribute("aria-label") }, canvas,
      make("p", {}, make("span", { textContent: `${head + 1}` }), make("span", { textContent: share })),
    );
  });
  $("heads").replaceChildren(...items);
}

$("show-patches").addEventListener("change", () => drawPatches(state.picture && shown));
// A picture that arrives after its heads.
$("picture").addEventListener("load", () => shown && state.picture && showHeads(shown));
