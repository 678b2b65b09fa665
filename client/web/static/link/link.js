// The way to the gateway: hello, resume with backoff, over WebRTC or, where that finds no way, over a WebSocket.

import { SocketCarrier } from "./socket.js";
import { TrackCarrier } from "./tracks.js";

const FINAL = { 1000: "ended", 1007: "refused", 1008: "refused", 1009: "refused", 1013: "refused", 4001: "taken over" };
const STORE = "wan-session";

// Events: phase (connecting, live, waiting, ended, refused, taken over), message (JSON), audio, video.
export class Link extends EventTarget {
  constructor(options, webrtc) {
    super();
    this.options = options; // of the model
    this.webrtc = webrtc;
    this.kept = null; // {session, after}: what a resume needs
    this.grace = 20;
    this.token = takeToken();
    this.phase = "idle";
    this.lostAt = 0;
    this.attempt = 0;
  }

  // A session that an earlier page of this tab left behind, or null.
  static remembered() {
    try { return JSON.parse(sessionStorage.getItem(STORE)); } catch { return null; }
  }

  open(resume = null) {
    clearTimeout(this.timer);
    this.kept = resume ?? this.kept;
    this.change(this.kept && this.lostAt ? "waiting" : "connecting");
    this.carrier?.close();
    const carrier = this.webrtc ? new TrackCarrier(this.token) : new SocketCarrier(this.token);
    this.carrier = carrier;
    const mine = (handle) => (...detail) => carrier === this.carrier && handle(...detail);
    const resuming = this.kept ? { resume: { ...this.kept, only: true } } : {};
    carrier.open({ type: "hello", video: "jpeg", options: this.options, ...resuming }, {
      message: mine((m) => this.receive(m)),
      audio: mine((unit) => this.emit("audio", unit)),
      video: mine((unit) => this.emit("video", unit)),
      joined: mine((session) => this.remember(session, this.kept?.after ?? 0)),
      closed: mine((code, why) => this.closed(code, why)),
    });
  }

  receive(message) {
    if (message.type === "welcome") {
      this.grace = message.grace_s;
      this.token = message.token ?? this.token;
      this.remember(message.session, this.kept?.after ?? message.after);
      this.lostAt = 0;
      this.attempt = 0;
      this.change("live");
    } else if (message.type === "unit") {
      if (this.kept) this.remember(this.kept.session, message.seq); // not after End: the last units still come
    } else if (message.type === "error" && message.code === "NOT_FOUND") {
      this.forget();
    } else if (message.type === "ended") {
      this.forget();
    }
    this.emit("message", message);
  }

  closed(code, why) {
    const { carrier } = this;
    this.carrier = null;
    const final = FINAL[code];
    if (final === undefined && this.webrtc && !carrier.connected) {
      this.webrtc = false;
      console.info(`WebRTC: ${why}; going on over WebSocket`);
      this.open();
      return;
    }
    if (final === undefined && this.kept) {
      this.lostAt = this.lostAt || performance.now();
      if (performance.now() - this.lostAt < this.grace * 1000) {
        this.change("waiting");
        this.timer = setTimeout(() => this.open(), Math.min(4000, 250 * 2 ** this.attempt++));
        return;
      }
    }
    if (final !== "taken over") this.forget();
    this.change(final ?? (this.phase === "connecting" ? "refused" : "lost"));
  }

  send(message) {
    if (this.phase === "live") this.carrier.send(message);
  }

  // Ends the conversation for good.
  end() {
    this.send({ type: "end" });
    this.forget();
  }

  remember(session, after) {
    this.kept = { session, after };
    try { sessionStorage.setItem(STORE, JSON.stringify(this.kept)); } catch { /* private mode: no resume after reload */ }
  }

  forget() {
    this.kept = null;
    sessionStorage.removeItem(STORE);
  }

  change(phase) {
    this.phase = phase;
    this.emit("phase", phase);
  }

  emit(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }
}

// The token comes in the fragment, which no server and no log sees, and leaves the address bar at once.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("wan-token", given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("wan-token");
}
