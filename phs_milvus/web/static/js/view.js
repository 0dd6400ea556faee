// Where the picture is on the stage: zoom, pan, and the way between pixels of the screen and of the picture.

import { $ } from "./dom.js";

const MOST_ZOOM = 24;

export class View {
  constructor(stage, world) {
    this.stage = stage;
    this.world = world;
    this.width = this.height = 1; // of the upright picture
    this.zoom = 1; // 1: the whole picture fits
    this.x = this.y = 0; // the world's corner, in pixels of the stage
    this.onchange = () => {};
    new ResizeObserver(() => this.place()).observe(stage);
  }

  setSize(width, height) {
    [this.width, this.height] = [width, height];
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.place();
  }

  /** Pixels of the screen per pixel of the picture. */
  get scale() {
    const { clientWidth, clientHeight } = this.stage;
    return this.zoom * Math.min(clientWidth / this.width, clientHeight / this.height);
  }

  /** Zooms by a factor, so that the point (x, y) of the stage stays where it is. */
  zoomBy(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    const zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const grown = zoom / this.zoom;
    this.zoom = zoom;
    this.x = x - (x - this.x) * grown;
    this.y = y - (y - this.y) * grown;
    this.place();
  }

  panBy(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.place();
  }

  /** Keeps the picture on the stage, in the middle where it is smaller. */
  place() {
    const { clientWidth, clientHeight } = this.stage;
    const [width, height] = [this.width * this.scale, this.height * this.scale];
    const held = (at, size, room) => (size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, at)));
    this.x = held(this.x, width, clientWidth);
    this.y = held(this.y, height, clientHeight);
    Object.assign(this.world.style, {
      width: `${width}px`, height: `${height}px`, transform: `translate(${this.x}px, ${this.y}px)`,
    });
    this.onchange();
  }

  /** Brings a point of the picture into sight. */
  reveal({ x, y }) {
    const { clientWidth, clientHeight } = this.stage;
    const [left, top] = [this.x + x * this.scale, this.y + y * this.scale];
    const margin = 24;
    const off = (at, room) => Math.max(0, margin - at) - Math.max(0, at - (room - margin));
    this.panBy(off(left, clientWidth), off(top, clientHeight));
  }

  /** A pointer's place: on the stage, and in the picture, within its edges. */
  at(event) {
    const corner = this.stage.getBoundingClientRect();
    const [left, top] = [event.clientX - corner.left - this.stage.clientLeft, event.clientY - corner.top - this.stage.clientTop];
    const within = (value, most) => Math.min(most, Math.max(0, value));
    return {
      left, top,
      x: within((left - this.x) / this.scale, this.width),
      y: within((top - this.y) / this.scale, this.height),
    };
  }
}

export const view = new View($("stage"), $("world"));
