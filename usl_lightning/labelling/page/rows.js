// Rows on the labelling page: images that seem to be of one class, taken at once, but for those that are left out.
"use strict";

const TILES = [..."1234567890ab"]; // the key of each image of a row
let row = null; // {class, named, images, out: Set, since}; since Infinity until all images are on the screen
let rowsPassed = []; // images of rows before that were left out or passed over
const MOST_PASSED = 300; // of them, told to the server

const inRows = () => !byId("row").hidden;

const saveRow = (images, number) => ask("rows", {
  images, answer: number, class: classNamed(number), selection: state.selection, window: window.name, shown: "",
});

function leaveRows() {
  if (!inRows()) return;
  row = null;
  byId("row").hidden = true;
  byId("single").hidden = byId("similar").hidden = false;
  document.querySelector(".answers").hidden = false;
}

// Show the next row: of images like this one, or, without one, that which is best to look over; says why if there is
// none. What cannot be shown is left out. Images that were not chosen are among them, unless somebody does not want that.
async function nextRow(image = null) {
  const without = rowsPassed.slice(-MOST_PASSED).join(",");
  const told = await ask(`row?window=${window.name}&without=${without}&beside=${byId("beside").checked}${image === null ? "" : `&image=${image}`}`);
  if (!told || state.classes[told.class] !== told.named) {
    leaveRows();
    show(firstUnanswered());
    return told ? "The classes have changed." : "No more rows: the rest is answered one by one.";
  }
  const mine = { ...told, out: new Set(), broken: new Set(), since: Infinity };
  row = mine;
  byId("row").hidden = false;
  byId("single").hidden = byId("similar").hidden = true;
  document.querySelector(".answers").hidden = true;
  const tiles = told.images.map((one, number) => tile(one, told.names[number], number));
  byId("row").querySelector("ul").replaceChildren(...tiles.map(({ item }) => item));
  byId("row-title").textContent = `All of these: ${apart(told.named)}?`;
  byId("row-likely").textContent = `By the guesses, about ${told.likely} of ${told.images.length} are.`;
  drawRow();
  scrollTo({ top: 0 });
  whenShown(mine, tiles.map(({ shown }) => shown));
  return "";
}

async function whenShown(mine, pictures) {
  const whole = await Promise.all(pictures.map(decoded));
  mine.broken = new Set(mine.images.filter((_, number) => !whole[number]));
  mine.broken.forEach((image) => mine.out.add(image));
  drawRow();
  await twoFrames();
  mine.since = performance.now();
}

function tile(image, name, number) {
  const shown = element("img", { alt: name, src: `thumbs/${image}` });
  const button = element("button", { type: "button" }, shown, element("kbd", { textContent: TILES[number] }));
  button.setAttribute("aria-keyshortcuts", TILES[number]);
  button.addEventListener("click", (event) => pressed(event, () => leaveOut(number)));
  return { item: element("li", {}, button), shown };
}

function leaveOut(number) {
  if (!row || number >= row.images.length) return;
  const image = row.images[number];
  if (row.broken.has(image)) return;
  if (!row.out.delete(image)) row.out.add(image);
  drawRow();
}

function drawRow() {
  if (!row) return;
  [...byId("row").querySelectorAll("li button")].forEach((button, number) => {
    button.setAttribute("aria-pressed", String(row.out.has(row.images[number])));
    button.setAttribute("aria-label", `Leave out ${row.names[number]}, key ${TILES[number]}`);
  });
  const count = row.images.length - row.out.size;
  byId("row-take").querySelector("span").textContent = `Take ${count} as ${apart(row.named)}`;
  byId("row-take").disabled = count === 0;
  byId("row-undo").disabled = history.length === 0;
}

const takeRow = (at) => alone(async () => {
  if (!row || at < row.since) {
    say("Not taken: the images were not all shown yet.");
    return;
  }
  const images = row.images.filter((image) => !row.out.has(image));
  if (images.length === 0) return;
  const { named, class: number, out } = row;
  const { selection } = state;
  const told = await saveRow(images, number);
  if (!told) return;
  if (!told.problem) history.push({ row: images, of: named });
  if (!told.problem) rowsPassed.push(...out);
  take(told);
  learn();
  if (state.selection !== selection) return;
  const none = await nextRow();
  const others = images.filter((image) => state.images[placeOf.get(image)]?.answer !== told.given).length;
  const kept = others ? ` ${others} had another answer from another window, and keep it.` : "";
  say(`${told.problem || `Saved: ${images.length - others} as ${apart(named)}.${kept}`} ${none}`.trim());
});

const passRow = () => alone(async () => {
  rowsPassed.push(...row.images);
  say(await nextRow());
});

async function afterRowUndone(last, problem) {
  if (inRows()) await nextRow(last.row[0]);
  else show(placeOf.get(last.row[0]) ?? firstUnanswered());
  say(problem ? `Not undone: ${problem}` : `Undone: ${last.row.length} as ${apart(last.of)}.`);
}

const toggleRows = () => alone(async () => {
  if (inRows()) {
    leaveRows();
    show(firstUnanswered());
    say("");
    return;
  }
  rowsPassed = [];
  if (byId("rows").hidden) say("There are no guesses yet: rows come when two classes have answers.");
  else say(await nextRow(entry().answer === null ? entry().image : null));
});

function rowKey(event) {
  const number = TILES.indexOf(event.key);
  const action = number >= 0 ? () => leaveOut(number) : {
    Enter: takeRow, Escape: toggleRows, r: toggleRows, " ": passRow, Backspace: undo, h: openHelp,
  }[event.key];
  return action;
}
