// The WebSocket to the gateway: hello, resume with backoff, and the binary messages (see page/frames.py).

const PCM16 = 1;
const JPEG = 2;
const HEAD = 16;
const FINAL = { 1000: "ended", 1007: "refused", 1008: "refused", 1009: "refused", 1013: "refused", 4001: "taken over" };
const STORE = "wan-session";
const MOST_BUFFERED = 256 * 1024; // bytes that may wait in the browser before units are left out

// Events: phase (connecting, live, waiting, ended, refused, taken over), message (JSON), audio, video.
export class Link extends EventTarget {
  constructor(options) {
    super();
    this.options = options; // of the model
    this.kept = null; // {session, after}: what a resume needs
    this.grace = 20;
    this.token = takeToken();
    this.phase = "idle";
    this.left = 0; // units not sent because the network did not take them
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
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const protocols = ["wan.session.v1", ...(this.token ? [`wan-token.${this.token}`] : [])];
    const socket = new WebSocket(`${scheme}://${location.host}/v1/session`, protocols);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      const resuming = this.kept ? { resume: { ...this.kept, only: true } } : {};
      socket.send(JSON.stringify({ type: "hello", video: "jpeg", options: this.options, ...resuming }));
    };
    socket.onmessage = ({ data }) => socket === this.socket && this.receive(data);
    socket.onclose = ({ code }) => socket === this.socket && this.closed(code);
  }

  receive(data) {
    if (typeof data !== "string") {
      const head = new DataView(data);
      const unit = head.getUint32(4, true);
      const kind = head.getUint8(0);
      if (kind === PCM16) this.emit("audio", { unit, pcm: new Int16Array(data, HEAD) });
      if (kind === JPEG) this.emit("video", { unit, blob: new Blob([new Uint8Array(data, HEAD)], { type: "image/jpeg" }) });
      return;
    }
    const message = JSON.parse(data);
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

  closed(code) {
    this.socket = null;
    const final = FINAL[code];
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

  // One unit of the user; the pictures go first, so that they are there when the sound completes the unit.
  sendUnit(pcm, blob, captured) {
    if (this.phase !== "live") return;
    if (this.socket.bufferedAmount > MOST_BUFFERED) { this.left++; return; }
    const socket = this.socket;
    if (blob) socket.send(new Blob([head(JPEG, captured), blob]));
    const sound = new Uint8Array(HEAD + pcm.byteLength);
    sound.set(new Uint8Array(head(PCM16, captured)));
    sound.set(new Uint8Array(pcm.buffer), HEAD);
    socket.send(sound);
  }

  send(message) {
    if (this.phase === "live") this.socket.send(JSON.stringify(message));
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

function head(kind, time) {
  const view = new DataView(new ArrayBuffer(HEAD));
  view.setUint8(0, kind);
  view.setFloat64(8, time, true);
  return view.buffer;
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
