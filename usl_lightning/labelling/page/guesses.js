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

function beginGuess() {
  offered = null;
  const next = helpful() && guessesHold() ? guesses.queue.find(([image]) => image === entry().image) : undefined;
  reason = next ? `Shown now because: ${next[1]}` : "";
}

// Mark the guess for the image on the screen, if there is one and it has no answer.
function showGuess() {
  byId("rows").hidden = byId("helpful").hidden = !(guessesHold() && guesses.guess.some((guess) => guess !== null));
  const { image, answer } = entry();
  const guess = guessOf(current);
  if (inRows() || answer !== null || guess === null || !wasShown(image, performance.now())) return;
  if (offered === null) offered = { image, number: guess[0], percent: guess[1], name: state.classes[guess[0]], since: performance.now() };
  drawGuess();
}

// Whether the guess is marked: its class is still called so, and its image has no answer by now.
const isMarked = () => offered !== null && offered.image === entry().image
  && state.classes[offered.number] === offered.name && entry().answer === null;

function drawGuess() {
  byId("helpful").setAttribute("aria-pressed", String(helpful()));
  const guessed = isMarked();
  [...byId("classes").querySelectorAll("button")].forEach((button, number) => {
    button.classList.toggle("guessed", guessed && number === offered.number);
  });
  const how = matchMedia("(pointer: coarse)").matches ? "A swipe to the right" : "Enter";
  const text = guessed ? `Guess: ${offered.name}, ${offered.percent}%. ${how} takes it.` : "";
  if (byId("guess").textContent !== text) byId("guess").textContent = text;
  byId("why").textContent = reason;
}

function takeGuess(at) {
  if (!isMarked() || at < offered.since) {
    say("There is no guess for this image.");
    return;
  }
  give(offered.number, at);
}

// Which place comes after this one: the most helpful one if that is asked for, else the next without an answer.
function following(place) {
  if (place >= state.asked) return state.images[cameFrom].answer === null ? cameFrom : following(cameFrom);
  if (helpful() && guessesHold()) {
    const open = ([image]) => !passed.has(image) && placeOf.get(image) !== place && state.images[placeOf.get(image)].answer === null;
    const next = guesses.queue.find(open);
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
