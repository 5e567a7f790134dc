// Guesses on the labelling page: what the server has learned from the answers so far, and what comes next by that.
"use strict";

let guesses = null; // what the server said last
let offered = null; // the guess for the image on the screen: {image, number, since}; it stays while the image does
let reason = ""; // why that image is shown now; it stays, too
let wished = null; // whether the most helpful images come first; null: nobody has said
let passed = new Set(); // images that were skipped
let asking = false;

const ENOUGH = 40; // answers from which on guesses tell what helps

const helpful = () => wished ?? state.images.filter(({ answer }) => answer !== null).length + coming >= ENOUGH;
const forgetGuesses = () => { guesses = null; offered = null; passed = new Set(); drawEnough(); };
const passOver = (image) => passed.add(image);
const guessesHold = () => guesses !== null && JSON.stringify(guesses.classes) === JSON.stringify(state.classes);

// Ask what the answers say by now. No answer waits for it.
async function learn() {
  if (asking || !state.guessing) return;
  asking = true;
  try {
    const { selection } = state;
    const told = await ask(`guesses?known=${encodeURIComponent(guesses ? guesses.key : "")}`);
    if (!told || selection !== state.selection || told.guess.length !== state.asked) return;
    guesses = told;
    drawEnough();
    showGuess();
    drawDoubts();
  } finally {
    asking = false;
  }
  if (guesses.version !== state.version) setTimeout(learn, 50); // there was an answer meanwhile
}

const guessOf = (place) => (guessesHold() && guesses.guess[place]) || null;

function reasonFor(image) {
  const next = helpful() && guessesHold() ? guesses.queue.find(([one]) => one === image) : undefined;
  return next ? `Shown now because: ${next[1]}` : "";
}

function beginGuess() {
  offered = null;
  reason = reasonFor(entry().image);
}

// Mark the guess for the image on the screen, if there is one and it has no answer.
function showGuess() {
  byId("rows").hidden = byId("helpful").hidden = !(guessesHold() && guesses.guess.some((guess) => guess !== null));
  const { image, answer } = entry();
  const guess = guessOf(current);
  if (inRows() || answer !== null || guess === null || isBroken() || !wasShown(image, performance.now())) return;
  if (offered === null) {
    offered = { image, percent: guess[1], name: state.classes[guess[0]], since: performance.now() };
    if (reason) reason = reasonFor(image) || reason; // by the same answers as the guess beside it
  }
  drawGuess();
  reveal(byId("classes").querySelector(".guessed"));
}

// Scroll the list of classes, and nothing else, to a button of it.
function reveal(button) {
  const list = byId("classes");
  if (!button || (button.offsetTop >= list.scrollTop + list.offsetTop
    && button.offsetTop + button.offsetHeight <= list.scrollTop + list.offsetTop + list.clientHeight)) return;
  list.scrollTop = button.offsetTop - list.offsetTop - list.clientHeight / 3;
}

// The class that is marked, by its number now: its image has no answer yet; -1 if none is.
const marked = () => (offered?.image === entry().image && entry().answer === null ? state.classes.indexOf(offered.name) : -1);

function drawGuess() {
  byId("helpful").setAttribute("aria-pressed", String(helpful()));
  const guessed = marked();
  [...byId("classes").querySelectorAll("button")].forEach((button, number) => {
    button.classList.toggle("guessed", number === guessed);
  });
  const how = matchMedia("(pointer: coarse)").matches ? "Swipe right" : "Enter";
  const text = guessed >= 0 ? `Guess: ${apart(offered.name)}, ${offered.percent}%. ${how} takes it.` : "";
  if (byId("guess").textContent !== text) byId("guess").textContent = text;
  byId("why").textContent = reason;
}

function takeGuess(at) {
  if (marked() < 0 || at < offered.since) {
    say("There is no guess for this image.");
    return;
  }
  give(marked(), at);
}

// Which place comes after this one: the most helpful one if that is asked for, else the next without an answer.
function following(place) {
  if (place >= state.asked) return state.images[cameFrom].answer === null ? cameFrom : following(cameFrom);
  if (helpful() && guessesHold()) {
    const open = ([image]) => !passed.has(image) && placeOf.get(image) !== place && state.images[placeOf.get(image)].answer === null;
    const next = guesses.queue.find((each) => open(each) && !elsewhere.has(each[0]));
    if (next) return placeOf.get(next[0]);
  }
  return unanswered(place);
}

function toggleHelpful() {
  wished = !helpful();
  passed = new Set();
  say(wished ? "The most helpful images come first." : "Images come in the order they were chosen in.");
  const next = following(-1);
  if (wished && entry().answer === null && next >= 0) show(next);
  else reason = "";
  drawGuess();
}

function drawEnough() {
  const told = guesses && guesses.enough;
  byId("enough").hidden = !told;
  if (!told) return;
  const percent = (share) => `${Math.round(100 * share)}%`;
  byId("enough").textContent = `About ${percent(told.accuracy)} right (${percent(told.low)} to ${percent(told.high)})`
    + (told.with_more ? `; with ${told.more} more answers about ${percent(told.with_more)}` : "");
}
