// The console of the admin port: shows one view at a time, and says when the daemon does not answer.
import { $, clock, onReach, setText } from "./console-kit.js";
import * as clients from "./console-clients.js";
import * as events from "./console-events.js";
import * as explain from "./console-explain.js";
import * as overview from "./console-overview.js";
import * as publish from "./console-publish.js";

const VIEWS = ["overview", "events", "clients", "publish", "explain"];
const BACK_MS = 6000;   // How long the page shows that the daemon answers again.
let shown = null, away = null, timer = 0;

// `#explain?user=7&topic=job_events.42` opens a view with values in it.
function route(byUser) {
  const [name, query = ""] = location.hash.slice(1).split("?");
  shown = VIEWS.includes(name) ? name : VIEWS[0];
  for (const view of VIEWS) $(view).hidden = view !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.getAttribute("href") === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = $(`${shown}-title`);
  document.title = `${title.textContent} – towerws console`;
  if (byUser) {
    title.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  if (shown === "explain") explain.open(new URLSearchParams(query));
  if (shown === "events") events.refresh();
  if (shown === "clients") clients.refresh();
  if (shown === "publish") publish.open();
}

function say(text, kind) {
  $("banner").dataset.kind = kind;
  setText($("banner"), text);
}

onReach((here) => {
  if (!here && away === null) {
    away = new Date();
    document.body.dataset.away = "yes";
    clearTimeout(timer);
    say(`The daemon has not answered since ${clock(away)}. The page keeps asking.`, "bad");
  } else if (here && away !== null) {
    say(`The daemon answers again. It was away from ${clock(away)} to ${clock(new Date())}.`, "good");
    away = null;
    delete document.body.dataset.away;
    timer = setTimeout(() => say("", "good"), BACK_MS);
    refreshOverview();
  }
});

const refreshOverview = overview.start();
events.start(() => shown === "events");
clients.start();
publish.start();
explain.start();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();   // Otherwise the address would get `#content` in place of the view.
  $("content").focus();
});
addEventListener("hashchange", () => route(true));
route(false);
