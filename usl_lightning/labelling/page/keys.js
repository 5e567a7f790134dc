// Keys and buttons of the labelling page, and its start.
"use strict";

// A button that was clicked does not keep the focus: the space bar would press it again on the next image.
function pressed(event, action) {
  if (event.detail > 0) event.currentTarget.blur();
  action(wentDown(event));
}

function openHelp() {
  byId("help").showModal();
  byId("help-title").focus();
}

const actions = {
  "?": (at) => give("unsure", at), " ": skip, ArrowRight: skip, ArrowLeft: previous, Backspace: undo,
  "+": () => byId("class-name").focus(), Enter: takeGuess, r: toggleRows, q: toggleHelpful, z: toggleZoom, h: openHelp,
  "/": find, ".": () => byId("part").focus(),
};

// What a key does where the focus is; undefined: what it always does.
function actionOf(event) {
  if (inRows()) return rowKey(event);
  const number = keysOf(state.classes).findIndex((keys) => keys.includes(event.key));
  const there = event.target.closest?.("#all ol button");
  if (there && (number >= 0 || event.key === "?")) return (at) => giveThere(there, number >= 0 ? number : "unsure", at);
  return number >= 0 ? (at) => give(number, at) : moveBy(event.key) ?? actions[event.key];
}

function keyPressed(event) {
  if (event.repeat && event.key === "Enter") event.preventDefault(); // held, it would press a button again and again
  const field = event.target.matches?.("input:not([type=checkbox]), select");
  if (field && event.key === "Escape") event.target.blur();
  if (field || byId("help").open || !byId("shortcuts").checked || event.altKey || event.metaKey) return;
  if (event.ctrlKey) {
    if (event.key === "z") undo();
    return;
  }
  if ((event.key === " " || event.key === "Enter") && event.target.matches("button, summary, a, input")) return;
  const action = actionOf(event);
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || moveBy(event.key)) action(event.timeStamp);
}

function onClick(id, action) {
  byId(id).addEventListener("click", (event) => pressed(event, action));
}

// Show the image that the address ends in, if it does.
function visitNamed() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("image")) visit({ image: Number(asked.get("image")), name: asked.get("name") });
}

async function start() {
  if (!take(await ask(`state?window=${window.name}`))) return;
  document.addEventListener("keydown", keyPressed);
  onClick("unsure", (at) => give("unsure", at));
  for (const [id, action] of Object.entries({
    skip, previous, undo, rows: toggleRows, helpful: toggleHelpful, "help-open": openHelp,
    "row-take": takeRow, "row-next": passRow, "row-undo": undo, "row-leave": toggleRows,
  })) onClick(id, action);
  byId("add").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("class-name").value.trim()) addClasses(byId("class-name").value);
    else byId("class-name").blur();
  });
  byId("pick").addEventListener("submit", pickClass);
  byId("part").addEventListener("input", findClass);
  byId("change").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("new-name").value.trim()) changeClass(byId("changed").value, byId("new-name").value);
  });
  byId("delete").addEventListener("click", () => changeClass(byId("changed").value, null));
  byId("beside").addEventListener("change", (event) => {
    event.currentTarget.blur(); // Enter takes the row
    alone(async () => say(await nextRow()));
  });
  startAll();
  startZoom((right, at) => (right ? takeGuess(at) : skip()));
  show(firstUnanswered());
  visitNamed();
  addEventListener("hashchange", visitNamed);
  learn();
  if (state.classes.length === 0) byId("class-name").focus();
  poll();
}

start();
