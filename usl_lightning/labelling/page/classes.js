// The classes on the labelling page: their buttons, keys and counts; classes are added, renamed, merged, deleted.
"use strict";

const MANY = 20; // classes above which one is found by its name sooner than by its place or its key
const RESERVED = "hzrq"; // letters that do something else: help, zoom, rows, queue

// The key or keys of each class: the first ten have a digit; each has a letter, of its name if one is free.
function keysOf(classes) {
  const letters = [..."abcdefghijklmnopqrstuvwxyz", ..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
  const free = new Set(letters.filter((letter) => !RESERVED.includes(letter)));
  return classes.map((name, number) => {
    const own = [...name.toLowerCase(), ...name.toUpperCase(), ...letters].find((letter) => free.has(letter));
    free.delete(own);
    return [...(number < 10 ? [String((number + 1) % 10)] : []), ...(own ? [own] : [])];
  });
}

function drawClasses() {
  const keys = keysOf(state.classes);
  byId("classes").replaceChildren(...state.classes.map((name, number) => {
    const button = element("button", { type: "button" });
    for (const key of keys[number]) button.append(element("kbd", { textContent: key }));
    button.append(element("span", { className: "name", textContent: name }), element("span", { className: "count" }));
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-keyshortcuts", keys[number].join(" "));
    button.addEventListener("click", (event) => pressed(event, (at) => give(number, at)));
    return element("li", {}, button);
  }));
  const before = byId("changed").value;
  const own = state.classes.filter((name) => !state.fixed.includes(name));
  byId("changed").replaceChildren(...own.map((name) => element("option", { textContent: name, value: name })));
  if (own.includes(before)) byId("changed").value = before;
  byId("edit").hidden = own.length === 0; // those of the data set itself stay
  byId("classes").classList.toggle("few", state.classes.length <= 10);
  byId("pick").hidden = state.classes.length <= MANY;
  findClass();
  drawFilter();
  drawCounts();
}

// Show the classes whose names have this part, and no others; all if the field is empty.
function findClass() {
  const part = byId("pick").hidden ? "" : byId("part").value.trim().toLowerCase();
  [...byId("classes").children].forEach((item, number) => {
    item.hidden = !state.classes[number].toLowerCase().includes(part);
  });
}

// Answer with the first of them; the field is ready for the next image.
function pickClass(event) {
  event.preventDefault();
  const number = [...byId("classes").children].findIndex((item) => !item.hidden);
  if (number < 0 || !byId("part").value.trim()) return;
  byId("part").value = "";
  findClass();
  give(number, wentDown(event));
}

// How many answers each class has, and how many more would do it good.
function drawCounts() {
  const counts = state.classes.map(() => 0);
  for (const { answer } of state.images) if (typeof answer === "number") counts[answer] += 1;
  [...byId("classes").querySelectorAll(".count")].forEach((shown, number) => {
    const missing = Math.max(0, state.of_each - counts[number]);
    shown.textContent = missing > 0 ? `${counts[number]} of ${state.of_each}` : counts[number];
    shown.title = missing > 0 ? `${missing} missing: guesses need some answers of each class` : "";
  });
}

const addClasses = (text) => alone(async () => {
  for (const name of text.split(",").map((part) => part.trim()).filter(Boolean)) {
    const told = await ask("classes", { name, selection: state.selection });
    if (!told) return;
    take(told);
    drawGiven();
    const keys = keysOf(state.classes)[state.classes.indexOf(name)] || [];
    say(`Class ${name}: key ${keys.join(" or ")}`);
  }
  byId("class-name").value = "";
  byId("class-name").blur();
});

// Give a class another name (that of another class merges the two), or, with null, delete it.
const changeClass = (named, name) => alone(async () => {
  const number = state.classes.indexOf(named);
  const clean = name === null ? null : name.trim().split(/\s+/).join(" ");
  const merge = clean !== null && clean !== named && state.classes.includes(clean);
  const count = state.images.filter(({ answer }) => answer === number).length;
  const images = count === 1 ? "1 image" : `${count} images`;
  if (merge && !confirm(`Make ${apart(named)} (${images}) part of ${apart(clean)}? This cannot be undone.`)) return;
  if (name === null && !confirm(`Delete ${apart(named)}? ${images} will have no answer. This cannot be undone.`)) return;
  const told = await ask("classes/change", { class: number, named, name: clean, merge, selection: state.selection });
  if (!told) return;
  take(told);
  learn();
  byId("new-name").value = "";
  say(told.problem || (name === null ? `Deleted: ${apart(named)}.` : `${apart(named)} is ${merge ? "part of" : "called"} ${apart(clean)} now.`));
});
