// The image on the labelling page, and since when it is on the screen: only what was seen can be answered.
"use strict";

let shown = null; // {image, since, broken}; `since` by the clock of event.timeStamp, Infinity while it loads
let ahead = null; // the picture that is likely to be next: {image, picture, whole}
let behind = null; // the one that was shown last, to come back to if its answer is not saved
let pressedAt = null; // when the key or button that is down went down

const decoded = (picture) => picture.decode().then(() => true, () => false);
const load = (image) => {
  const picture = Object.assign(new Image(), { src: `images/${image}` });
  return { image, picture, whole: decoded(picture) };
};
const twoFrames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
const loadAhead = (image) => { ahead = load(image); };
const forgetAhead = () => { ahead = null; behind = null; };
const isBroken = () => shown.broken;
const isPainted = () => shown.since < Infinity;

// Whether that image was on the screen at a time, when a key or button was pressed.
const wasShown = (image, at) => shown !== null && shown.image === image && at >= shown.since;

// Put an image on the screen, and then say so. The one before goes at once, so that nobody takes it for this one.
async function paint(image, name, painted) {
  const mine = { image, since: Infinity, broken: false };
  shown = mine;
  let loaded = [ahead, behind].find((known) => known?.image === image) ?? load(image);
  ahead = null;
  inFrame(note(""), true);
  if (!await loaded.whole) {
    loaded = load(image); // once more: the server may have been busy
    mine.broken = !await loaded.whole;
  }
  if (shown !== mine) return;
  const why = mine.broken ? await whyBroken(image) : "";
  if (shown !== mine) return;
  const { picture } = behind = loaded;
  Object.assign(picture, { id: "image", alt: `The image to label: ${name}` });
  inFrame(mine.broken ? note(`This image cannot be shown${why}`) : picture, false);
  await twoFrames();
  if (shown !== mine) return;
  mine.since = performance.now();
  painted();
}

// What the server says of an image that cannot be shown.
async function whyBroken(image) {
  const told = await fetch(`images/${image}`).then((response) => (response.ok ? {} : response.json())).catch(() => ({}));
  return told.problem ? `: ${told.problem}` : ".";
}

function inFrame(content, loading) {
  const frame = document.getElementById("frame");
  frame.setAttribute("aria-busy", String(loading));
  frame.replaceChildren(content);
}

const note = (text) => Object.assign(document.createElement("p"), { textContent: text });

// A click comes when a key or button goes up; what counts is when it went down.
const wentDown = (click) => Math.min(pressedAt ?? Infinity, click.timeStamp);
const down = (event) => { if (!event.repeat) pressedAt = event.timeStamp; };
const up = () => {
  const before = pressedAt;
  setTimeout(() => { if (pressedAt === before) pressedAt = null; }); // after the click
};
for (const kind of ["keydown", "pointerdown"]) addEventListener(kind, down, true);
for (const kind of ["keyup", "pointerup", "pointercancel"]) addEventListener(kind, up, true);
addEventListener("blur", up);
