// The labelling page. The server's file is the truth: an answer counts once the server has said that it is saved.
"use strict";

const PAUSE = 100; // ms between two questions for news; the server waits for some
const SURPRISE = 1000; // ms in which nobody has seen what another window said of the image on the screen

const byId = (id) => document.getElementById(id);
// Of this tab, also after it is loaded anew; whoever opened it may have given it any other name.
if (!/^labels-[a-z0-9]+$/.test(window.name)) window.name = `labels-${Math.random().toString(36).slice(2)}`;
// Of `images` the first `asked` were chosen, `kept` of them in rounds before; the next ones, `added`, were answered beside
// them; others are looked at.
let state = { version: "", selection: "", classes: [], images: [], asked: 0, kept: 0, added: [], then: "", bulk: [] };
let current = 0; // place in state.images
let cameFrom = 0; // place of the chosen image that was shown before one that was not chosen
let placeOf = new Map(); // of each image in state.images
let history = []; // of this window's answers: {image, before, after}, or {row: images, of: class}
let busy = false;
let coming = 0; // answers that are being saved
let underWay = Promise.resolve(); // what is being done, if anything is
let elsewhere = new Set(); // images that other windows show: they come last here
let surprise = null; // what was answered elsewhere of the image on the screen: {image, answer before, until}
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
  if (told?.elsewhere) elsewhere = new Set(told.elsewhere);
  if (!told || told.version === state.version) return false;
  const classesChanged = JSON.stringify(told.classes) !== JSON.stringify(state.classes);
  const replaced = state.selection !== "" && told.selection !== state.selection;
  if (state.classes.some((name, number) => name !== told.classes[number])) history = []; // numbers mean others now
  const here = entry();
  const others = JSON.stringify(told.added.map(({ image }) => image)) !== JSON.stringify(state.added.map(({ image }) => image));
  const chosen = told.images || state.images.slice(0, state.asked).map((each, place) => ({ ...each, answer: told.answers[place] }));
  state = { ...told, images: [...chosen, ...told.added], asked: chosen.length };
  placeOf = new Map(state.images.map(({ image }, place) => [image, place]));
  if (here && !replaced) current = placeOf.get(here.image) ?? addPlace(here);
  if (classesChanged) drawClasses();
  if (count || replaced) drawProgress();
  if (replaced) {
    startOver();
  } else {
    drawGiven();
    if (others) listAll();
    else drawAll();
  }
  return true;
}

// A place for an image that was not chosen and has no answer, at the end; it stays there while it is shown.
function addPlace({ image, name }) {
  state.images.push({ image, name, answer: null });
  placeOf.set(image, state.images.length - 1);
  return state.images.length - 1;
}

// Show an image, chosen or not; after it comes what would have come.
function visit(other) {
  if (current < state.asked) cameFrom = current;
  leaveRows();
  show(placeOf.get(other.image) ?? addPlace(other));
  scrollTo({ top: 0 });
}

// Somebody chose anew: nothing of the images before may be taken for these.
function startOver() {
  history = [];
  forgetAhead();
  forgetGuesses();
  leaveRows();
  listAll();
  show(firstUnanswered());
  say("The label file was replaced: these are its images.");
}

async function poll() {
  try {
    if (document.hidden || busy) return;
    const known = `known=${encodeURIComponent(state.version)}&selection=${state.selection}&elsewhere=${[...elsewhere]}`;
    const { version } = state;
    const told = await ask(`state?${known}&window=${window.name}&shown=${onScreen()}&wait`);
    const before = entry();
    const news = !busy && version === state.version && take(told); // it may be older than an answer since
    if (troubled !== "look") learn(); // which may well go on without the file, and would end the complaint
    if (!news || entry().image !== before.image || entry().answer === before.answer) return;
    surprise = { image: before.image, answer: before.answer, until: performance.now() + SURPRISE };
    say(`Answered in another window: ${nameOf(entry().answer)}`);
  } finally {
    setTimeout(poll, troubled === "look" ? PAUSE * 10 : PAUSE);
  }
}

// What is shown ------------------------------------------------------------------------------------------

const entry = () => state.images[current];
const onScreen = () => String(inRows() ? row.images : entry().image); // as the server is told
const nameOf = (answer) => (answer === null ? "no answer" : answer === "unsure" ? "not sure" : apart(state.classes[answer]));
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]/;
const apart = (name) => (RIGHT_TO_LEFT.test(name) ? `\u2068${name}\u2069` : name); // what stands around it stays in order
const say = (text) => { byId(inRows() ? "row-status" : "status").textContent = text; };

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

// Answers to images that were not chosen count like all others: with as many as were to be given, it is enough.
function drawProgress() {
  const { asked, added } = state;
  const given = state.images.slice(0, asked).filter((each) => each.answer !== null).length;
  const done = given + added.length;
  byId("bar").max = Math.max(asked, done) || 1;
  byId("bar").value = done;
  const beside = added.length ? `, ${added.length} not chosen` : "";
  byId("progress").textContent = `${done} of ${asked} answered${beside}`;
  byId("done").hidden = done < asked;
  byId("done-title").textContent = given === asked ? "All images have an answer" : "As many answers as images were chosen";
  byId("done-open").hidden = given === asked;
  byId("done-open").querySelector("span").textContent = String(asked - given);
  byId("then").textContent = state.then;
  document.title = `${done} of ${asked} – Label images`;
  drawCounts();
}

const placeNamed = (place) => (place < state.asked ? `Image ${place + 1} of ${state.asked}` : "Image that was not chosen");

function drawGiven() {
  const { answer } = entry();
  byId("given").textContent = answer === null ? "" : `Answer: ${nameOf(answer)}`;
  [...byId("classes").querySelectorAll("button")].forEach((button, number) => {
    button.setAttribute("aria-pressed", String(answer === number));
  });
  byId("unsure").setAttribute("aria-pressed", String(answer === "unsure"));
  byId("undo").disabled = history.length === 0;
  drawGuess();
}

function show(place) {
  current = place;
  const { image, name } = entry();
  title(`Loading i${placeNamed(place).slice(1)} …`, "");
  beginGuess();
  drawGiven();
  fit();
  paint(image, name, () => {
    title(placeNamed(place), name);
    drawProgress();
    showGuess();
    const next = state.images[following(place)];
    if (next && next.image !== image) loadAhead(next.image); // there when it is wanted
    drawSimilar(image);
  });
  drawAll();
}

function title(which, name) {
  byId("which").textContent = which;
  byId("name").textContent = name;
}

async function drawSimilar(image) {
  const near = (await ask(`similar/${image}`)) || [];
  if (image !== entry().image) return;
  byId("similar").hidden = near.length === 0;
  byId("similar").querySelector("ul").replaceChildren(...near.map((other) => leadingTo(other, "Similar image")));
}

// A small picture that leads to an image; its answer stands below, or, if it has none, an alternative text for it.
function leadingTo(other, alt) {
  const place = placeOf.get(other.image);
  const answer = place === undefined ? null : state.images[place].answer;
  const figure = element("figure", {}, picture("thumbs", other.image, answer === null ? alt : ""));
  if (answer !== null) figure.append(element("figcaption", { textContent: nameOf(answer) }));
  const button = element("button", { type: "button", title: other.name }, figure);
  button.addEventListener("click", () => visit(other));
  return element("li", {}, button);
}

// What can be done ---------------------------------------------------------------------------------------

// The next chosen one without an answer, after this place and round; one that another window shows if there is no other;
// this one if there is none of these, -1 if it has an answer too.
function unanswered(place) {
  const count = state.asked;
  let last = -1;
  for (let step = 1; step <= count; step++) {
    const next = (place + step) % count;
    if (state.images[next].answer !== null) continue;
    if (step < count && !elsewhere.has(state.images[next].image)) return next;
    if (last < 0) last = next;
  }
  return last;
}

// What rounds before left without an answer comes after those of this one.
const firstUnanswered = () => Math.max(0, unanswered(state.kept - 1));

// One thing at a time: what was not seen cannot be answered.
function alone(action) {
  if (busy) return underWay;
  busy = true;
  underWay = action().finally(() => { busy = false; });
  return underWay;
}

const classNamed = (answer) => (typeof answer === "number" ? state.classes[answer] : null);

const save = (image, answer, before, shown = onScreen()) => ask("answers", {
  image, answer, class: classNamed(answer), seen: before, seen_class: classNamed(before), selection: state.selection,
  window: window.name, shown,
});

// An answer to the image on the screen, after what is under way: the next image is shown while an answer is being saved.
async function give(answer, at) {
  const [{ image }, named] = [entry(), classNamed(answer)];
  await underWay;
  const number = named === null ? answer : state.classes.indexOf(named); // another window may have changed that
  if (wasShown(image, at) && entry().image === image && number !== -1) await alone(() => giveNow(number, at));
  else say("Not taken: the image was not shown yet.");
}

async function giveNow(answer, at) {
  const { image, name, answer: now } = entry();
  const before = surprise?.image === image && at < surprise.until ? surprise.answer : now; // what was seen
  if (isBroken() && answer !== "unsure") {
    say("An image that cannot be shown can be skipped, or marked as not sure.");
    return;
  }
  if (answer === "unsure" && current >= state.asked && before === null) {
    say("This image was not chosen: say what it is, or skip it.");
    return;
  }
  const { selection } = state;
  coming = now === null ? 1 : 0;
  const next = following(current);
  const goesOn = next >= 0 && state.images[next].image !== image;
  const saving = save(image, answer, before, goesOn ? String(state.images[next].image) : undefined);
  if (goesOn) show(next);
  const told = await saving;
  coming = 0;
  if (told && !told.problem) history.push({ image, name, before, after: answer });
  take(told, { count: isPainted() });
  if (state.selection !== selection) return;
  if (!told || told.problem) {
    if (entry().image !== image) visit({ image, name });
    drawProgress();
    if (told) say(`${told.problem}. Answer again to change it.`);
    else say(`Not saved: ${nameOf(answer)}.`);
    return;
  }
  drawGiven();
  learn();
  const after = goesOn ? current : following(current);
  say(`Saved: ${nameOf(told.given)}. ${after < 0 ? "All images have an answer." : `${placeNamed(after)}.`}`);
  if (goesOn) return;
  if (after >= 0) {
    show(after);
  } else {
    drawProgress();
    byId("all").open = true;
    byId("done-title").focus();
  }
}

const undo = () => underWay.then(() => alone(async () => {
  const last = history.at(-1);
  if (!last) return;
  const { selection } = state;
  const told = last.row ? await saveRow(last.row, null) : await save(last.image, last.before, last.after);
  if (!told) return;
  take(told);
  learn();
  if (state.selection !== selection) return;
  history.pop();
  if (last.row) {
    await afterRowUndone(last, told.problem);
    return;
  }
  visit(last);
  say(told.problem ? `Not undone: ${told.problem}` : `Undone: it was ${nameOf(last.after)}.`);
}));

function skip() {
  passOver(entry().image);
  const next = following(current);
  show(next < 0 ? (current + 1) % state.asked : next);
  say(`${placeNamed(current)}.`);
}

function previous() {
  show(current < state.asked ? (current + state.asked - 1) % state.asked : cameFrom);
  say(`${placeNamed(current)}.`);
}
