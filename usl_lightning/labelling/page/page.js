// The labelling page. The server's file is the truth: an answer counts once the server has said that it is saved.
"use strict";

const POLL = 2000; // ms between two looks at what other windows have answered

const byId = (id) => document.getElementById(id);
let state = { version: "", selection: "", classes: [], images: [], then: "" };
let current = 0; // place in state.images
let history = []; // of this window's answers: {image, before, after}
let busy = false;
let troubled = ""; // what the complaint that is shown is about: "look" at the server's state, or "change" it

// Talking to the server ----------------------------------------------------------------------------------

async function ask(address, body) {
  const options = { cache: "no-store" };
  const kind = body === undefined ? "look" : "change";
  if (body !== undefined) {
    Object.assign(options, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    complain("The server has stopped. All answers up to here are saved: start usl label again and open the address it prints.", "look");
    return null;
  }
  const content = response.status === 204 ? null : await response.json().catch(() => null);
  if (response.ok || response.status === 409) {
    if (kind === "change" || troubled === "look") complain("", ""); // a look that went well mends no change that did not
    return content;
  }
  complain(content ? content.problem : "The server has failed; its terminal says why.", kind);
  return null;
}

// Take over what the server says; true if anything is new. The count can wait until the next image is shown.
function take(told, { count = true } = {}) {
  if (!told || told.version === state.version) return false;
  const classesChanged = JSON.stringify(told.classes) !== JSON.stringify(state.classes);
  const replaced = state.selection !== "" && told.selection !== state.selection;
  state = told;
  if (classesChanged) drawClasses();
  if (count || replaced) drawProgress();
  if (replaced) {
    startOver();
  } else {
    drawGiven();
    drawAll();
  }
  return true;
}

// Somebody chose anew: nothing of the images before may be taken for these.
function startOver() {
  history = [];
  forgetAhead();
  byId("all").querySelector("ol").replaceChildren();
  show(firstUnanswered());
  say("The label file was replaced: these are its images.");
}

async function poll() {
  try {
    if (document.hidden || busy) return;
    const before = entry();
    const told = await ask(`state?known=${encodeURIComponent(state.version)}`);
    if (busy || !take(told) || entry().image !== before.image) return;
    if (entry().answer !== before.answer) say(`Answered in another window: ${nameOf(entry().answer)}`);
  } finally {
    setTimeout(poll, POLL);
  }
}

// What is shown ------------------------------------------------------------------------------------------

const entry = () => state.images[current];
const nameOf = (answer) => (answer === null ? "no answer" : answer === "unsure" ? "not sure" : state.classes[answer]);
const say = (text) => { byId("status").textContent = text; };

function complain(text, kind) {
  troubled = kind;
  if (byId("trouble").textContent !== text) byId("trouble").textContent = text; // said again only if it is another
  byId("trouble").hidden = !text;
}

function element(tag, attributes, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function picture(kind, image, alt) {
  return element("img", { alt, loading: "lazy", src: `${kind}/${image}` });
}

// The key or keys of each class: the first ten have a digit; each has a letter, of its name if one is free.
function keysOf(classes) {
  const letters = [..."abcdefghijklmnopqrstuvwxyz", ..."ABCDEFGHIJKLMNOPQRSTUVWXYZ"];
  const free = new Set(letters);
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
    button.append(element("span", { textContent: name }));
    button.setAttribute("aria-pressed", "false");
    button.setAttribute("aria-keyshortcuts", keys[number].join(" "));
    button.addEventListener("click", (event) => pressed(event, (at) => give(number, at)));
    return element("li", {}, button);
  }));
}

function drawProgress() {
  const done = state.images.filter((each) => each.answer !== null).length;
  byId("bar").max = state.images.length || 1;
  byId("bar").value = done;
  byId("progress").textContent = `${done} of ${state.images.length} answered`;
  byId("done").hidden = done < state.images.length;
  byId("then").textContent = state.then;
  document.title = `${done} of ${state.images.length} – Label images`;
}

function drawGiven() {
  const { answer } = entry();
  byId("given").textContent = answer === null ? "" : `Answer: ${nameOf(answer)}`;
  [...byId("classes").querySelectorAll("button")].forEach((button, number) => {
    button.setAttribute("aria-pressed", String(answer === number));
  });
  byId("unsure").setAttribute("aria-pressed", String(answer === "unsure"));
  byId("undo").disabled = history.length === 0;
}

function show(place) {
  current = place;
  const { image, name } = entry();
  title(`Loading image ${place + 1} of ${state.images.length} …`, "");
  drawGiven();
  paint(image, name, (broken) => {
    title(`Image ${place + 1} of ${state.images.length}`, name);
    drawProgress();
    if (broken) ask(`images/${image}`); // which says why
    const next = state.images[unanswered(place)];
    if (next && next.image !== image) loadAhead(next.image); // there when it is wanted
  });
  drawSimilar(image);
  drawAll();
}

function title(which, name) {
  byId("which").textContent = which;
  byId("name").textContent = name;
}

async function drawSimilar(image) {
  const near = (await ask(`similar/${image}`)) || [];
  if (image !== entry().image) return;
  const answers = new Map(state.images.map((each) => [each.image, each.answer]));
  byId("similar").hidden = near.length === 0;
  byId("similar").querySelector("ul").replaceChildren(...near.map((other) => {
    const answer = answers.get(other) ?? null;
    const figure = element("figure", {}, picture("thumbs", other, answer === null ? "Similar image" : ""));
    if (answer !== null) figure.append(element("figcaption", { textContent: nameOf(answer) }));
    return element("li", {}, figure);
  }));
}

// The overview is made when it is opened, and then kept up to date.
function drawAll() {
  const list = byId("all").querySelector("ol");
  if (!byId("all").open) return;
  if (list.children.length !== state.images.length) {
    list.replaceChildren(...state.images.map(({ image }, place) => {
      const button = element("button", { type: "button" }, picture("thumbs", image, ""), element("span"));
      button.addEventListener("click", () => { show(place); scrollTo({ top: 0 }); });
      return element("li", {}, button);
    }));
  }
  state.images.forEach(({ answer }, place) => {
    const button = list.children[place].firstChild;
    const text = answer === null ? "–" : nameOf(answer);
    if (button.lastChild.textContent !== text) button.lastChild.textContent = text;
    button.setAttribute("aria-label", `Image ${place + 1}: ${nameOf(answer)}`);
    button.setAttribute("aria-current", String(place === current));
  });
}

// What can be done ---------------------------------------------------------------------------------------

// The next place without an answer, after this one and round; this one if there is no other, -1 if there is none.
function unanswered(place) {
  const count = state.images.length;
  for (let step = 1; step <= count; step++) {
    if (state.images[(place + step) % count].answer === null) return (place + step) % count;
  }
  return -1;
}

const firstUnanswered = () => Math.max(0, unanswered(state.images.length - 1));

// One thing at a time: what was not seen cannot be answered.
async function alone(action) {
  if (busy) return;
  busy = true;
  try {
    await action();
  } finally {
    busy = false;
  }
}

const save = (image, answer, before) => ask("answers", {
  image, answer, seen: before, selection: state.selection, class: typeof answer === "number" ? state.classes[answer] : null,
});

const give = (answer, at) => alone(async () => {
  const { image, answer: before } = entry();
  if (!wasShown(image, at)) {
    say("Not taken: the image was not shown yet.");
    return;
  }
  if (isBroken() && answer !== "unsure") {
    say("An image that cannot be shown can be skipped, or marked as not sure.");
    return;
  }
  const { selection } = state;
  const told = await save(image, answer, before);
  if (!told) return;
  if (!told.problem) history.push({ image, before, after: answer });
  take(told, { count: false });
  if (state.selection !== selection) return;
  drawGiven();
  if (told.problem) {
    drawProgress();
    say(`${told.problem}: ${nameOf(entry().answer)}. Answer again to change it.`);
    return;
  }
  const next = unanswered(current);
  say(`Saved: ${nameOf(answer)}. ${next < 0 ? "All images have an answer." : `Image ${next + 1} of ${state.images.length}.`}`);
  if (next >= 0) {
    show(next);
  } else {
    drawProgress();
    byId("all").open = true;
    byId("done-title").focus();
  }
});

const undo = () => alone(async () => {
  const last = history.at(-1);
  if (!last) return;
  const { selection } = state;
  const told = await save(last.image, last.before, last.after);
  if (!told) return;
  take(told);
  if (state.selection !== selection) return;
  history.pop();
  show(state.images.findIndex((each) => each.image === last.image));
  say(told.problem ? `Not undone: ${told.problem}` : `Undone: it was ${nameOf(last.after)}.`);
});

function skip() {
  const next = unanswered(current);
  const place = next < 0 ? (current + 1) % state.images.length : next;
  show(place);
  say(`Image ${place + 1} of ${state.images.length}.`);
}

function previous() {
  show((current + state.images.length - 1) % state.images.length);
  say(`Image ${current + 1} of ${state.images.length}.`);
}

const addClasses = (text) => alone(async () => {
  for (const name of text.split(",").map((part) => part.trim()).filter(Boolean)) {
    const told = await ask("classes", { name });
    if (!told) return;
    take(told);
    drawGiven();
    const keys = keysOf(state.classes)[state.classes.indexOf(name)] || [];
    say(`Class ${name}: key ${keys.join(" or ")}`);
  }
  byId("class-name").value = "";
  byId("class-name").blur();
});

// Keys and buttons ---------------------------------------------------------------------------------------

// A button that was clicked does not keep the focus: the space bar would press it again on the next image.
function pressed(event, action) {
  if (event.detail > 0) event.currentTarget.blur();
  action(wentDown(event));
}

const actions = {
  "?": (at) => give("unsure", at), " ": skip, ArrowRight: skip, ArrowLeft: previous, Backspace: undo,
  "+": () => byId("class-name").focus(),
};

function keyPressed(event) {
  if (event.repeat && event.key === "Enter") event.preventDefault(); // held, it would press a button again and again
  const field = event.target instanceof HTMLInputElement && event.target.type !== "checkbox";
  if (field && event.key === "Escape") event.target.blur();
  if (field || !byId("shortcuts").checked || event.altKey || event.metaKey) return;
  if (event.ctrlKey) {
    if (event.key === "z") undo();
    return;
  }
  if (event.key === " " && event.target.matches("button, summary, a, input")) return;
  const number = keysOf(state.classes).findIndex((keys) => keys.includes(event.key));
  const action = number >= 0 ? (at) => give(number, at) : actions[event.key];
  if (!action || event.repeat) return;
  event.preventDefault();
  action(event.timeStamp);
}

async function start() {
  if (!take(await ask("state"))) return;
  document.addEventListener("keydown", keyPressed);
  byId("unsure").addEventListener("click", (event) => pressed(event, (at) => give("unsure", at)));
  byId("skip").addEventListener("click", (event) => pressed(event, skip));
  byId("previous").addEventListener("click", (event) => pressed(event, previous));
  byId("undo").addEventListener("click", (event) => pressed(event, undo));
  byId("add").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("class-name").value.trim()) addClasses(byId("class-name").value);
    else byId("class-name").blur();
  });
  byId("all").addEventListener("toggle", drawAll);
  show(firstUnanswered());
  if (state.classes.length === 0) byId("class-name").focus();
  setTimeout(poll, POLL);
}

start();
