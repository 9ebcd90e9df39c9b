// The overview: one card with a chart for each figure, over the last 15 minutes.
import { $, age, ask, bytes, count, duration, make, onReach, plural, rate, repeat, setText, visible } from "./console-kit.js";

const POLL_MS = 5000;
const LEAST_S = 120;   // Shortest time that the charts show, right after a start. It grows to `kept_s`.
const MINUTE = 12;     // Samples in one row of the table.
const WIDTH = 300, HEIGHT = 100;
const SVG = "http://www.w3.org/2000/svg";

const plain = (value) => [count(value), ""];
const perSecond = (value) => [rate(value), "/s"];
const bytesPerSecond = (value) => { const [number, unit] = bytes(value); return [number, `${unit}/s`]; };

// `figure` is the sample's figure that a card shows as a line, `second` another line in the same chart. `mood` returns "warn" or "bad" for
// the newest values. With `sum`, a sample is the count since the sample before it, so each span of time shows the sum of its samples.
const CARDS = [
  { title: "Connections", figure: "connections", form: plain, more: (_, present) => present.connections_max ? `room for ${count(present.connections_max)}` : "",
    mood: (now, present) => present.connections_max && now >= 0.95 * present.connections_max ? "warn" : "" },
  { title: "Clients behind", figure: "behind", form: plain, more: (series) => `most ${count(Math.max(0, ...series.figure))}`,
    mood: (now, _, last) => now > 0 && now > 0.2 * last.connections ? "warn" : "" },
  { title: "Events in", figure: "events_in_per_s", form: perSecond, more: (series) => peak(series, perSecond) },
  { title: "Deliveries out", figure: "events_out_per_s", form: perSecond, more: (series) => peak(series, perSecond) },
  { title: "Bytes out", figure: "bytes_out_per_s", form: bytesPerSecond, more: (series) => peak(series, bytesPerSecond) },
  { title: "Time to deliver", figure: "delivery_p50_s", second: "delivery_p99_s", form: duration, quiet: "no events",
    more: (_, __, last) => last.delivery_p99_s === null ? "median" : `median · 99%: ${duration(last.delivery_p99_s).join(" ")}`,
    mood: (_, __, last) => last.delivery_p99_s > 0.25 ? "warn" : "" },
  { title: "Gap notices", figure: "gaps", form: plain, sum: true, mood: (total) => total > 0 ? "bad" : "",
    more: (_, present) => present.not_recovered ? `${plural(present.not_recovered, "client")} resumed too late since the start` : "in 15 min" },
  { title: "Refused clients", figure: "refusals", form: plain, sum: true,
    more: (_, present) => reasons(present.refused_for) || "in 15 min" },
  { title: "Lag behind the broker", figure: "broker_lag_s", form: duration, quiet: "no broker", more: (_, present) => present.source.state,
    mood: (now, present) => present.source.state !== "consuming" ? "bad" : now > 1 ? "warn" : "" },
  { title: "History reaches back", figure: "history_span_s", form: duration,
    more: (_, present, last) => `${plural(present.history_events || 0, "event")}, ${bytes(last.history_bytes || 0).join(" ")}` },
  { title: "Questions to the API", figure: "api_calls_per_s", form: perSecond, quiet: "no API is asked", when: (present) => present.api,
    more: (_, present) => present.breaker_open ? "the breaker is open" : total(samples, "api_failures") ? `${count(total(samples, "api_failures"))} failed in 15 min` : "the breaker is closed",
    mood: (_, present, last) => present.breaker_open ? "bad" : last.api_failures ? "warn" : "" },
  { title: "Event loop is late by", figure: "loop_lag_p99_s", form: duration, more: () => "99% of the time, or less", mood: (now) => now > 0.25 ? "warn" : "" },
];

const peak = (series, form) => series.figure.length ? `peak ${join(form(Math.max(...series.figure.filter((value) => value !== null))))}` : "";
const join = ([value, unit]) => unit === "" || unit.startsWith("/") ? value + unit : `${value} ${unit}`;

function reasons(refused) {
  const most = Object.entries(refused || {}).sort((one, other) => other[1] - one[1]).slice(0, 2);
  return most.length ? `since the start: ${most.map(([reason, number]) => `${visible(reason)} ${count(number)}`).join(", ")}` : "";
}

let instance = null, names = [], samples = [], present = null, now = 0, keptS = 900, spanS = 900;

function shape(tag, className) {
  const element = document.createElementNS(SVG, tag);
  element.setAttribute("class", className);
  return element;
}

function build(card) {
  const item = make("li", "card");
  const svg = shape("svg", "");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  for (const y of [0, HEIGHT / 2, HEIGHT]) {
    const line = shape("line", "grid");
    for (const [name, value] of [["x1", 0], ["x2", WIDTH], ["y1", y], ["y2", y]]) line.setAttribute(name, value);
    svg.append(line);
  }
  const area = shape("path", "area"), second = shape("path", "line second"), line = shape("path", "line"), cross = shape("line", "cross");
  svg.append(area, second, line, cross);
  const value = make("span", "value"), more = make("span", "more"), head = make("div", "now");
  const chart = make("div", "chart"), most = make("span", "most"), tip = make("span", "tip"), waiting = make("span", "waiting");
  tip.hidden = true;
  head.append(value, more);
  chart.append(svg, most, tip, waiting);
  const axis = make("div", "axis");
  const from = make("span");
  axis.append(from, make("span", "", "now"));
  axis.setAttribute("aria-hidden", "true");
  item.append(make("h3", "", card.title), head, chart, axis);
  $("cards").append(item);
  card.parts = { item, svg, area, second, line, cross, value, more, most, tip, waiting, from };
  chart.addEventListener("pointermove", (event) => point(card, event));
  chart.addEventListener("pointerleave", () => { tip.hidden = true; for (const name of ["x1", "x2", "y1", "y2"]) cross.setAttribute(name, 0); });
}

const column = (name) => names.indexOf(name) + 1;   // a sample begins with its time
const total = (some, name) => some.reduce((sum, sample) => sum + (sample[column(name)] || 0), 0);
const x = (at) => WIDTH * (1 - (now - at) / spanS);

function path(points, most) {
  let text = "", open = false;
  points.forEach(([at, value], index) => {
    if (value === null) {
      open = false;
      return;
    }
    const y = (HEIGHT * (1 - value / most)).toFixed(1);
    // A sample between two gaps becomes a line over its own 5 s, because a point would be invisible.
    const alone = !open && (points[index + 1]?.[1] ?? null) === null;
    text += alone ? `M${x(at - POLL_MS / 1000).toFixed(1)} ${y}H${x(at).toFixed(1)}` : `${open ? "L" : "M"}${x(at).toFixed(1)} ${y}`;
    open = true;
  });
  return text;
}

function fill(points, most) {
  let text = "", run = [];
  for (const [at, value] of [...points, [0, null]]) {
    if (value !== null) {
      run.push(`${x(at).toFixed(1)} ${(HEIGHT * (1 - value / most)).toFixed(1)}`);
      continue;
    }
    if (run.length > 1) text += `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}L${run.at(-1).split(" ")[0]} ${HEIGHT}Z`;
    run = [];
  }
  return text;
}

function draw(card) {
  const { item, svg, area, second, line, value, more, most: top, waiting, from } = card.parts;
  setText(from, `${Math.round(spanS / 60)} min ago`);
  const at = column(card.figure);
  const points = samples.map((sample) => [sample[0], sample[at]]);
  const others = card.second ? samples.map((sample) => [sample[0], sample[column(card.second)]]) : [];
  const values = points.map(([, value]) => value).filter((value) => value !== null);
  const last = Object.fromEntries(names.map((name, index) => [name, samples.length ? samples.at(-1)[index + 1] : null]));
  const newest = card.sum && values.length ? total(samples, card.figure) : points.length ? points.at(-1)[1] : null;
  const off = newest === null || (card.when && !card.when(present));
  const [number, unit] = off ? [samples.length ? card.quiet || "–" : "–", ""] : card.form(newest);
  value.replaceChildren(document.createTextNode(number), ...(unit ? [make("small", "", unit)] : []));
  item.dataset.mood = (off ? "off" : card.mood ? card.mood(newest, present, last) : "") || "";
  setText(more, off ? "" : card.more({ figure: values }, present, last));
  const most = Math.max(...values, ...others.map(([, value]) => value || 0), 0);
  const height = most > 0 ? most * 1.08 : 1;
  line.setAttribute("d", off ? "" : path(points, height));
  area.setAttribute("d", off ? "" : fill(points, height));
  second.setAttribute("d", off ? "" : path(others, height));
  setText(top, off || !most ? "" : join(card.form(most)));
  waiting.hidden = samples.length > 1;
  setText(waiting, "the first samples come within 10 s");
  const said = card.sum ? `${number} in all, at most ${join(card.form(most))} in 5 s` : `now ${join([number, unit])}, at most ${join(card.form(most))}`;
  svg.setAttribute("aria-label", off ? `${card.title}: ${number}` : `${card.title} over the last ${Math.round(spanS / 60)} minutes: ${said}`);
}

function point(card, event) {
  const { item, svg, cross, tip } = card.parts;
  if (samples.length < 2 || item.dataset.mood === "off") return;
  const box = svg.getBoundingClientRect();
  const wanted = now - spanS * (1 - (event.clientX - box.left) / box.width);
  const near = samples.reduce((best, sample) => Math.abs(sample[0] - wanted) < Math.abs(best[0] - wanted) ? sample : best);
  const value = near[column(card.figure)], second = card.second ? near[column(card.second)] : null;
  for (const [name, place] of [["x1", x(near[0])], ["x2", x(near[0])], ["y1", 0], ["y2", HEIGHT]]) cross.setAttribute(name, place);
  const text = value === null ? "–" : join(card.form(value)) + (second === null ? "" : ` · ${join(card.form(second))}`);
  setText(tip, `${text}, ${age(now - near[0])} ago`);
  tip.hidden = false;
}

function showTable() {
  if (!$("figures").open) return;
  const head = make("tr");
  head.append(...["Ago", ...CARDS.map((card) => card.title)].map((title) => { const cell = make("th", "", title); cell.scope = "col"; return cell; }));
  $("figures-head").replaceChildren(head);
  const rows = [];
  for (let end = samples.length; end > 0; end -= MINUTE) rows.push(samples.slice(Math.max(0, end - MINUTE), end));
  $("figures-body").replaceChildren(...rows.map((minute) => {
    const row = make("tr"), sample = minute.at(-1);
    row.append(make("td", "", age(now - sample[0])), ...CARDS.map((card) => {
      const value = card.sum ? total(minute, card.figure) : sample[column(card.figure)];
      return make("td", "", value === null ? "–" : join(card.form(value)));
    }));
    return row;
  }));
}

function show() {
  setText($("version"), visible(present.version || ""));
  const { state, reason, unproven } = present.source;
  const ready = state === "consuming" && !reason;
  $("state").dataset.state = ready ? "good" : state === "backoff" || state === "stopped" ? "bad" : "wait";
  setText($("state"), ready ? "live" : visible(state));
  const why = [reason, ...(unproven || [])].filter(Boolean).map(visible).join("; ");
  $("source-reason").hidden = !why;
  setText($("source-reason"), why);
  setText($("overview-note"), `running for ${age(present.uptime_s)}, auth: ${present.auth.join(", ")}`);
  CARDS.forEach(draw);
  showTable();
}

async function poll() {
  const newest = samples.length ? samples.at(-1)[0] : -1;
  let found;
  try {
    found = await ask(`console/samples?after=${newest}`);
  } catch {
    return;   // console.js shows that the daemon does not answer
  }
  if (found.instance !== instance) {
    const again = instance !== null && newest >= 0;
    instance = found.instance;
    samples = [];
    if (again) found = await ask("console/samples").catch(() => found);
  }
  ({ names, present, now, kept_s: keptS } = found);
  samples = [...samples, ...found.samples].filter((sample) => sample[0] > now - keptS);
  spanS = Math.min(keptS, Math.max(LEAST_S, 60 * Math.ceil((now - (samples.length ? samples[0][0] : now)) / 60)));
  show();
}

export function start() {
  CARDS.forEach(build);
  $("figures").addEventListener("toggle", showTable);
  onReach((here) => {
    if (here) return;
    $("state").dataset.state = "bad";
    setText($("state"), "no answer");
  });
  return repeat(POLL_MS, () => true, poll);
}
