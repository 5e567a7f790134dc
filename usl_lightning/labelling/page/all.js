// All images on the labelling page: found by name, filtered by answer, doubtful answers first, changed in place.
"use strict";

const AT_ONCE = 300; // images that are listed before more are asked for
const REST = 200; // ms without a key after which a name is looked for in the whole data set
let listed = []; // places in the list; they stay until something else is asked for
let most = AT_ONCE;

// What can be filtered by: every class, and what is no class.
function drawFilter() {
  const before = byId("of").value;
  const option = (value, text) => element("option", { value, textContent: text });
  byId("of").replaceChildren(
    option("", "any"), option("none", "none yet"), option("unsure", "not sure"), option("bulk", "given in a row"), option("added", "given to images that were not chosen"),
    ...state.classes.map((name, number) => option(String(number), name)),
  );
  byId("of").value = before;
  if (byId("of").selectedIndex < 0) byId("of").value = "";
}

// Names are alike in any case and however their accents are written.
const comparable = (name) => name.normalize().toLowerCase();

function wanted() {
  const [text, of] = [comparable(byId("find").value.trim()), byId("of").value];
  const some = new Set(of === "bulk" ? state.bulk : of === "added" ? state.added.map(({ image }) => image) : []);
  const fits = ({ image, answer }) => of === "" || (of === "none" && answer === null) || String(answer) === of || some.has(image);
  return state.images.slice(0, entries()).map((each, place) => ({ ...each, place }))
    .filter((each) => fits(each) && (text === "" || comparable(each.name).includes(text)));
}

// How many images are chosen or have an answer; what is only looked at comes after them.
const entries = () => state.asked + state.added.length;

const doubtOf = () => new Map(guessesHold() ? guesses.doubts : []);

// List what is asked for; called when that changes. The image that has the focus keeps it.
function listAll() {
  if (!byId("all").open) return;
  const focused = document.activeElement?.closest?.("#all ol button")?.dataset.place;
  let found = wanted();
  if (byId("by").value === "doubt") {
    const doubts = doubtOf();
    found = found.filter(({ answer }) => answer !== null)
      .sort((one, two) => (doubts.get(one.image) ?? 100) - (doubts.get(two.image) ?? 100));
  }
  listed = found.map(({ place }) => place);
  byId("found").textContent = `${listed.length} of ${entries()} images`;
  byId("more").hidden = listed.length <= most;
  byId("all").querySelector("ol").replaceChildren(...listed.slice(0, most).map((place) => {
    const thumb = picture("thumbs", state.images[place].image, "");
    thumb.addEventListener("load", () => noteShown(thumb));
    const button = element("button", { type: "button" }, thumb, element("span"));
    button.dataset.place = String(place);
    button.addEventListener("click", () => visit(state.images[place]));
    return element("li", {}, button);
  }));
  if (focused !== undefined) byId("all").querySelector(`ol button[data-place="${focused}"]`)?.focus();
  drawAll();
  listOthers(byId("find").value.trim());
}

// Images that were not chosen and are called so, if any without an answer are asked for.
async function listOthers(text) {
  if (text !== "") await new Promise((done) => setTimeout(done, REST));
  if (text !== byId("find").value.trim()) return;
  const fits = text !== "" && ["", "none"].includes(byId("of").value) && byId("by").value === "";
  const others = (fits && await ask(`named?part=${encodeURIComponent(text)}`)) || [];
  if (text !== byId("find").value.trim()) return;
  byId("others").hidden = others.length === 0;
  byId("others").querySelector("ul").replaceChildren(...others.map((other) => leadingTo(other, other.name)));
}

// The list is made when it is opened, and then kept up to date.
function drawAll() {
  if (!byId("all").open) return;
  const doubts = doubtOf();
  for (const button of byId("all").querySelectorAll("ol button")) {
    const place = Number(button.dataset.place);
    const { image, name, answer } = state.images[place];
    const doubt = doubts.has(image) && answer !== null ? `, doubtful: likely to ${doubts.get(image)}%` : "";
    const text = `${answer === null ? "–" : nameOf(answer)}${doubt}`;
    if (button.lastChild.textContent !== text) button.lastChild.textContent = text;
    const which = place < state.asked ? `Image ${place + 1}` : "Not chosen";
    button.setAttribute("aria-label", `${which}, ${name}: ${nameOf(answer)}${doubt}`);
    button.setAttribute("aria-current", String(place === current));
    button.title = name;
  }
}

const drawDoubts = drawAll;

async function noteShown(thumb) {
  if (!await decoded(thumb)) return;
  await twoFrames();
  thumb.since = performance.now();
}

// Answer the image of the list that has the focus, and stay there.
const giveThere = (button, answer, at) => alone(async () => {
  const place = Number(button.dataset.place);
  const { image, answer: before } = state.images[place];
  if (!(at >= button.querySelector("img").since)) {
    say("Not taken: the image is not shown.");
    return;
  }
  const told = await save(image, answer, before);
  if (!told) return;
  if (!told.problem) history.push({ image, name: state.images[place].name, before, after: answer });
  take(told);
  learn();
  byId("found").textContent = told.problem || `${placeNamed(place)}: ${nameOf(answer)}`;
});

function startAll() {
  byId("all").addEventListener("toggle", listAll);
  const anew = () => { most = AT_ONCE; listAll(); };
  for (const id of ["find", "of", "by"]) byId(id).addEventListener("input", anew);
  byId("filter").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("all").querySelector("ol button, #others button")?.focus();
  });
  byId("more").addEventListener("click", () => { most += AT_ONCE; listAll(); });
}

function find() {
  byId("all").open = true;
  byId("find").focus();
  byId("find").scrollIntoView({ block: "start" });
}
