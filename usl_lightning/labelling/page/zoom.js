// Zooming into the image on the labelling page: wheel, z, two fingers; one finger or the mouse moves it, or swipes.
"use strict";

const CLOSEST = 8; // times the size that fits
const BY_KEY = 3;
const SENT = 1600; // pixels of the longest side that an image is sent with at first
const SWIPE = 60; // pixels
const BY_ARROW = 1 / 4; // of the frame
const ARROWS = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
let zoom = { scale: 1, x: 0, y: 0 }; // x and y: where the middle of the image is, in pixels from that of the frame
const fingers = new Map(); // pointers that are down: {x, y, startX, startY, at}

const frameOf = () => document.getElementById("frame");

function setZoom(scale, x, y) {
  const { clientWidth: width, clientHeight: height } = frameOf();
  const held = Math.min(CLOSEST, Math.max(1, scale));
  const inside = (value, side) => Math.max(-(held - 1) * side / 2, Math.min((held - 1) * side / 2, value));
  zoom = { scale: held, x: inside(x, width), y: inside(y, height) };
  const image = document.getElementById("image");
  if (image) image.style.transform = held === 1 ? "" : `translate(${zoom.x}px, ${zoom.y}px) scale(${held})`;
  frameOf().classList.toggle("zoomed", held > 1);
  if (held > 1 && image) takeCloser(image);
}

// Put what the server has in more pixels in the place of an image that is zoomed into.
async function takeCloser(image) {
  if (image.dataset.closer || Math.max(image.naturalWidth, image.naturalHeight) < SENT) return;
  image.dataset.closer = "asked";
  const closer = Object.assign(new Image(), { src: image.src.replace("/images/", "/closer/") });
  closer.dataset.closer = "shown";
  if (!await decoded(closer) || !image.isConnected) return;
  closer.style.transform = image.style.transform;
  image.replaceWith(Object.assign(closer, { id: "image", alt: image.alt }));
}

const fit = () => setZoom(1, 0, 0);

// Zoom about a point of the screen, which stays where it is.
function zoomAbout(factor, clientX, clientY) {
  const box = frameOf().getBoundingClientRect();
  const [dx, dy] = [clientX - box.left - box.width / 2, clientY - box.top - box.height / 2];
  const scale = Math.min(CLOSEST, Math.max(1, zoom.scale * factor));
  const grown = scale / zoom.scale;
  setZoom(scale, dx - (dx - zoom.x) * grown, dy - (dy - zoom.y) * grown);
}

function toggleZoom() {
  if (zoom.scale > 1) fit();
  else setZoom(BY_KEY, 0, 0);
}

// What an arrow key does to an image that is zoomed into: show what is farther that way.
function moveBy(key) {
  if (zoom.scale === 1 || !ARROWS[key]) return undefined;
  const [right, down] = ARROWS[key].map((step) => step * BY_ARROW);
  return () => setZoom(zoom.scale, zoom.x + right * frameOf().clientWidth, zoom.y + down * frameOf().clientHeight);
}

const spread = () => {
  const [one, two] = fingers.values();
  return { apart: Math.hypot(one.x - two.x, one.y - two.y), x: (one.x + two.x) / 2, y: (one.y + two.y) / 2 };
};

function fingerDown(event) {
  if (event.button > 0) return;
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY, startX: event.clientX, startY: event.clientY, at: event.timeStamp, alone: fingers.size === 0 });
  if (fingers.size > 1) for (const finger of fingers.values()) finger.alone = false;
  frameOf().setPointerCapture(event.pointerId);
}

function fingerMoved(event) {
  const finger = fingers.get(event.pointerId);
  if (!finger) return;
  const before = fingers.size === 2 ? spread() : null;
  const [dx, dy] = [event.clientX - finger.x, event.clientY - finger.y];
  Object.assign(finger, { x: event.clientX, y: event.clientY });
  if (before) {
    const now = spread();
    zoomAbout(now.apart / Math.max(1, before.apart), now.x, now.y);
  } else if (fingers.size === 1 && zoom.scale > 1) {
    setZoom(zoom.scale, zoom.x + dx, zoom.y + dy);
  }
}

// A finger that went sideways, alone and over an image that is not zoomed into, has swiped.
function fingerUp(event, swiped) {
  const finger = fingers.get(event.pointerId);
  fingers.delete(event.pointerId);
  if (!finger || event.type === "pointercancel" || event.pointerType !== "touch" || !finger.alone || zoom.scale > 1) return;
  const [dx, dy] = [event.clientX - finger.startX, event.clientY - finger.startY];
  if (Math.abs(dx) > SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) swiped(dx > 0, finger.at);
}

function startZoom(swiped) {
  const frame = frameOf();
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAbout(Math.exp(-event.deltaY / 300), event.clientX, event.clientY);
  }, { passive: false });
  frame.addEventListener("pointerdown", fingerDown);
  frame.addEventListener("pointermove", fingerMoved);
  for (const kind of ["pointerup", "pointercancel"]) frame.addEventListener(kind, (event) => fingerUp(event, swiped));
}
