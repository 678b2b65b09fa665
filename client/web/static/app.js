// The page: puts capture, link, player, screen, transcript and strip together.

import { Capture } from "./capture.js";
import { Link } from "./link/link.js";
import { Player } from "./player.js";
import { Screen } from "./screen.js";
import { Strip } from "./strip.js";
import { TrackPlayer } from "./track_player.js";
import { Transcript } from "./transcript.js";

const UNIT_MS = 160;
const SOURCE = "wan-source";
const WEBRTC = "wan-webrtc";
const PHASES = {
  idle: "Not connected", connecting: "Connecting …", waiting: "Connection lost, reconnecting …",
  ended: "The conversation has ended", refused: "Not connected", lost: "Connection lost", "taken over": "Open in another tab",
};
const STATES = { listen: "Listening", speak: "Speaking" };

const at = (id) => document.getElementById(id);
const screen = new Screen(at("agent"));
const strip = new Strip(at("strip"), at("legend"), at("summary"));
const transcript = new Transcript(at("log"), at("caption"));

let link = null;
let context = null;
let player = null;
let capture = null;
let shape = null;
let muted = false;
let serving = 0; // counts conversations; what an earlier one still delivers is ignored
const seen = { state: "listen", audio: -1, heard: -1, caption: -1, unit: -1, flush: null };
const arrivals = new Map(); // unit -> when it came
const counts = { units: 0, late: 0, bargeIns: 0, resumes: 0, energy: 0 };

// -- beginning and ending ---------------------------------------------------------------------------------------

function chosen() { return document.querySelector("input[name=source]:checked").value; }

function start(resume = null) {
  notice("");
  const options = { seed: Number(at("seed").value) || 0 };
  if (at("prompt").value.trim()) options.prompt = at("prompt").value.trim();
  if (at("voice").value.trim()) options.voice = at("voice").value.trim();
  link = new Link(options, at("webrtc").checked);
  const mine = ++serving;
  for (const [type, handle] of Object.entries({ phase, message, audio, video })) {
    link.addEventListener(type, ({ detail }) => mine === serving && handle(detail));
  }
  Object.assign(seen, { state: "listen", audio: -1, heard: -1, caption: -1, unit: -1 });
  if (!resume) transcript.restore([]);
  at("caption").textContent = "";
  arrivals.clear();
  context ??= new AudioContext({ latencyHint: "interactive" });
  context.resume();
  sessionStorage.setItem(SOURCE, chosen());
  sessionStorage.setItem(WEBRTC, at("webrtc").checked);
  link.open(resume);
}

async function begin(welcome) {
  const { webrtc, carrier } = link;
  if (capture && webrtc !== player instanceof TrackPlayer) stop(); // it came back by another way
  const fresh = capture === null;
  shape = welcome.shape;
  if (welcome.resumed) {
    counts.resumes++;
    transcript.restore(welcome.history);
  }
  screen.resize(shape);
  show(welcome.state);
  const { in_force: prompt, known } = welcome.prompt;
  if (known.length && at("prompt").value.trim() && at("prompt").value.trim() !== prompt) {
    notice(`This model knows the prompts ${known.join(", ")}; in force is ${prompt}.`);
  }
  const names = welcome.voice.known;
  at("voices").replaceChildren(...names.map((name) => new Option(name, name)));
  if (at("voice").value.trim() && at("voice").value.trim() !== welcome.voice.in_force) {
    notice(names.length ? `The faces and voices here are ${names.join(", ")}.` : "This gateway offers the model's own voice only.");
  }
  if (!fresh) {
    if (webrtc) {
      player.play(carrier.stream);
      carrier.show(capture.given, shape);
    }
    return;
  }
  player = webrtc ? new TrackPlayer(context, carrier.stream, at("face")) : await Player.make(context, shape, began);
  const source = chosen();
  const onUnit = webrtc ? null : (...unit) => link.phase === "live" && link.carrier.sendUnit(...unit);
  const onTracks = () => link.webrtc && capture && link.carrier?.show(capture.given, shape);
  const make = (kind) => Capture.make(context, shape, kind, at("file").files[0], at("self"), onUnit, notice, onTracks);
  try {
    capture = await make(source === "file" && !at("file").files.length ? "text" : source);
  } catch (error) {
    notice(`No ${source === "camera" ? "microphone or camera" : source} (${error.message}). You can type instead.`);
    capture = await make("text");
  }
  capture.muted = muted;
  onTracks();
  if (context.state !== "running") notice("Press any key or touch the page to hear the agent.");
}

function stop() {
  capture?.close();
  player?.close();
  capture = null;
  player = null;
  transcript.close();
  at("screen").dataset.state = "idle";
  at("state").textContent = "Not started";
}

function phase(now) {
  const live = now === "live";
  at("status").textContent = live ? `Connected over ${link.webrtc ? "WebRTC" : "WebSocket"}` : PHASES[now];
  at("status").dataset.phase = now;
  for (const id of ["mute", "interrupt", "end", "text"]) at(id).disabled = !live;
  at("say").querySelector("button").disabled = !live;
  const running = live || now === "connecting" || now === "waiting";
  at("start").hidden = running;
  at("sources").hidden = running;
  at("reconnect").hidden = !(now === "waiting" || now === "lost" || now === "taken over");
  if (!running) stop();
}

// -- what comes from the gateway --------------------------------------------------------------------------------

function message(m) {
  if (m.type === "welcome") begin(m);
  else if (m.type === "unit") unit(m);
  else if (m.type === "heard" && m.unit > seen.heard) {
    seen.heard = m.unit;
    transcript.heard(m.unit, m.text);
  } else if (m.type === "caption" && m.unit > seen.caption) {
    seen.caption = m.unit;
    transcript.agent(m.unit, m.text);
  } else if (m.type === "error") failure(m);
  else if (m.type === "notice") notice(m.text);
}

function failure({ code, message: text }) {
  if (code === "NOT_FOUND") notice("");
  else if (code === "RESOURCE_EXHAUSTED") notice(`The server is full: ${text}`);
  else notice(`${text} (${code})`);
}

function unit(m) {
  if (m.unit <= seen.unit) return; // said again after a resume
  seen.unit = m.unit;
  const now = performance.now();
  arrivals.set(m.unit, now);
  arrivals.delete(m.unit - 64);
  if (m.barge_in) {
    counts.bargeIns++;
    silence().then((ms) => { seen.flush = { unit: m.unit, during: seen.unit, ms }; });
  }
  show(m.state);
  if (player instanceof TrackPlayer) {
    player.unit(m.muted);
  } else {
    if (m.muted) {
      player?.push(m.unit, null);
      seen.audio = m.unit;
    }
    if (!player?.running) screen.begin(m.unit, now);
  }
  transcript.passed(m.unit, m.state === "speak");
  record(m, now);
}

// Where the time of a unit went: from its last sample at the microphone to its answer here.
function record(m, now) {
  const { perceive = 0, think = 0, perform = 0, render = 0, queue = 0 } = m.ms;
  const server = perceive + think + perform + render + queue;
  const whole = m.captured === null ? m.held + m.gateway + (link.carrier?.rtt ?? 0) : now - m.captured;
  const wait = m.held + queue;
  const network = Math.max(0, whole - m.held - server);
  const late = whole > UNIT_MS;
  counts.units++;
  counts.late += late;
  strip.add({ unit: m.unit, speak: m.state === "speak", late, ms: { wait, perceive, think, perform, render, network } });
}

function audio({ unit: index, pcm }) {
  if (index <= seen.audio) return;
  seen.audio = index;
  for (let i = 0; i < pcm.length; i += 8) counts.energy += (pcm[i] / 32768) ** 2;
  player?.push(index, pcm);
}

function video({ unit: index, blob }) { screen.add(index, blob); }

function began(index, when) {
  screen.begin(index, when);
  const arrived = arrivals.get(index);
  if (arrived !== undefined) strip.played(index, Math.max(0, when - arrived));
}

function show(state) {
  seen.state = state;
  at("screen").dataset.state = state;
  at("state").textContent = STATES[state] ?? state;
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

// -- what comes from the user -----------------------------------------------------------------------------------

at("start").addEventListener("click", () => {
  if (chosen() === "file" && !at("file").files.length) notice("Choose a recording first.");
  else start();
});
at("end").addEventListener("click", () => link?.end());
at("reconnect").addEventListener("click", () => start(Link.remembered()));

function interrupt() {
  if (at("interrupt").disabled) return;
  silence();
  link.send({ type: "interrupt" });
}

// Nothing that waits is heard or seen; resolves to the milliseconds until the loudspeaker was quiet.
async function silence() {
  const asked = performance.now();
  screen.flush();
  transcript.close(" —");
  await player?.flush();
  return performance.now() - asked;
}
at("interrupt").addEventListener("click", interrupt);
addEventListener("keydown", (event) => event.key === "Escape" && interrupt());

at("mute").addEventListener("click", () => {
  muted = !muted;
  if (capture) capture.muted = muted;
  at("mute").setAttribute("aria-pressed", String(muted));
  at("mute").textContent = muted ? "Muted" : "Mute";
});

at("say").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (!text) return;
  link.send({ type: "text", text });
  transcript.you(text);
  at("text").value = "";
});

for (const radio of document.querySelectorAll("input[name=source]")) {
  radio.addEventListener("change", () => { at("file").hidden = chosen() !== "file"; });
}

// Browsers let a page make sound only after a gesture; a reloaded page has had none.
for (const gesture of ["pointerdown", "keydown"]) {
  addEventListener(gesture, () => {
    if (context?.state === "suspended") context.resume().then(() => notice(""));
    player?.resume?.();
  });
}

// For support and tests: what this page has counted.
window.wan = {
  stats: () => ({
    ...counts, phase: link?.phase ?? "idle", state: seen.state, unit: seen.unit, frames: player?.frames ?? screen.frames,
    strip: strip.units.length, flush: seen.flush, player: player ? { ...player.stats } : null, audioContext: context?.state ?? "none",
    session: link?.kept?.session ?? null, left: link?.carrier?.left ?? 0, webrtc: link?.webrtc ?? null,
  }),
};

const remembered = Link.remembered();
if (remembered) {
  const source = sessionStorage.getItem(SOURCE);
  const radio = document.querySelector(`input[name=source][value="${source === "file" ? "text" : source}"]`);
  if (radio) radio.checked = true;
  at("webrtc").checked = sessionStorage.getItem(WEBRTC) !== "false";
  start(remembered);
}
