// Prompts as shapes: {type: "point", x, y, label}, {type: "box", x0, y0, x1, y1}, {type: "lasso", points: [[x, y], ...]},
// in pixels of the upright picture. Nothing here changes its arguments.

// As phs_milvus.pointing: the radius of a click's disc, as a share of the shorter side.
const RELATIVE_RADIUS = 0.07;

export const radiusIn = ({ width, height }) => RELATIVE_RADIUS * Math.min(width, height);

export const HANDLES = [
  ["x0", "y0", "nwse-resize"], ["x1", "y0", "nesw-resize"], ["x0", "y1", "nesw-resize"], ["x1", "y1", "nwse-resize"],
  ["", "y0", "ns-resize"], ["", "y1", "ns-resize"], ["x0", "", "ew-resize"], ["x1", "", "ew-resize"],
];

/** Where a handle of a box is. */
export const handleAt = (box, [hx, hy]) => [
  hx ? box[hx] : (box.x0 + box.x1) / 2, hy ? box[hy] : (box.y0 + box.y1) / 2,
];

export function boxOf(a, b) {
  return {
    type: "box", x0: Math.min(a.x, b.x), y0: Math.min(a.y, b.y), x1: Math.max(a.x, b.x), y1: Math.max(a.y, b.y),
  };
}

/** A box with one of its handles dragged to a point. */
export function resized(box, [hx, hy], { x, y }) {
  const { x0, y0, x1, y1 } = { ...box, ...(hx ? { [hx]: x } : {}), ...(hy ? { [hy]: y } : {}) };
  return boxOf({ x: x0, y: y0 }, { x: x1, y: y1 });
}

/** A shape moved by (dx, dy), as far as the picture reaches. */
export function moved(shape, dx, dy, { width, height }) {
  const [x0, y0, x1, y1] = bounds(shape);
  dx = Math.min(width - x1, Math.max(-x0, dx));
  dy = Math.min(height - y1, Math.max(-y0, dy));
  if (shape.type === "lasso") return { ...shape, points: shape.points.map(([x, y]) => [x + dx, y + dy]) };
  if (shape.type === "box")
    return { ...shape, x0: shape.x0 + dx, y0: shape.y0 + dy, x1: shape.x1 + dx, y1: shape.y1 + dy };
  return { ...shape, x: shape.x + dx, y: shape.y + dy };
}

export function bounds(shape) {
  if (shape.type === "box") return [shape.x0, shape.y0, shape.x1, shape.y1];
  if (shape.type === "point") return [shape.x, shape.y, shape.x, shape.y];
  const [xs, ys] = [0, 1].map((axis) => shape.points.map((point) => point[axis]));
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** Whether a shape is under a point; `near` is how close the mark of a click must be. */
export function covers(shape, { x, y }, near) {
  if (shape.type === "point") return Math.hypot(shape.x - x, shape.y - y) <= near;
  const [x0, y0, x1, y1] = bounds(shape);
  if (x < x0 || x > x1 || y < y0 || y > y1) return false;
  return shape.type === "box" || inside(shape.points, x, y);
}

function inside(points, x, y) {
  let within = false;
  for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [points[i], points[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) within = !within;
  }
  return within;
}

/** A lasso of fewer corners, none of which was further than `slack` from the line (Douglas and Peucker). */
export function simplified(points, slack) {
  if (points.length < 3) return points;
  const [[x0, y0], [x1, y1]] = [points[0], points.at(-1)];
  const length = Math.hypot(x1 - x0, y1 - y0);
  let [furthest, most] = [0, slack];
  points.forEach(([x, y], i) => {
    const off = length
      ? Math.abs((x1 - x0) * (y0 - y) - (x0 - x) * (y1 - y0)) / length
      : Math.hypot(x - x0, y - y0);
    if (off > most) [furthest, most] = [i, off];
  });
  if (!furthest) return [points[0], points.at(-1)];
  return [
    ...simplified(points.slice(0, furthest + 1), slack).slice(0, -1), ...simplified(points.slice(furthest), slack),
  ];
}
