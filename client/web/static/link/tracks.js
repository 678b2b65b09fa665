// The conversation over WebRTC: sound and pictures as tracks both ways, JSON on a data channel.

const JOIN_MS = 5000; // until the data channel is open
const AWAY_MS = 4000; // without a packet: another way is looked for
const WATCH_MS = 1000;
const GONE = 1006; // as a WebSocket says it
const CAMERA_BITS = 300_000; // a second; the model sees a small picture

export class TrackCarrier {
  constructor(token) {
    this.token = token;
    this.left = 0;
    this.connected = false;
    this.rtt = 0; // ms
  }

  // handlers: message(JSON), joined(session), closed(code, why)
  async open(hello, { message, joined, closed }) {
    this.closed = (code, why = "") => { this.close(); closed(code, why); };
    try {
      const pc = new RTCPeerConnection();
      this.pc = pc;
      this.channel = pc.createDataChannel("wan");
      this.senders = {};
      this.stream = new MediaStream();
      for (const kind of ["audio", "video"]) {
        const { sender, receiver } = pc.addTransceiver(kind, { direction: "sendrecv" });
        this.senders[kind] = sender;
        receiver.jitterBufferTarget = 0; // as short as the network lets it be
        this.stream.addTrack(receiver.track);
      }
      this.timer = setTimeout(() => this.closed(GONE, "no way through"), JOIN_MS);
      this.channel.onopen = () => this.opened();
      this.channel.onclose = () => this.closed(GONE);
      this.channel.onmessage = ({ data }) => {
        const m = JSON.parse(data);
        if (m.type === "bye") this.closed(m.code);
        else message(m);
      };
      pc.onconnectionstatechange = () => this.changed();
      await pc.setLocalDescription();
      // The answer has the gateway's addresses, and the first check tells it ours: no candidate is waited for.
      const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
      const body = JSON.stringify({ sdp: sparing(pc.localDescription.sdp), hello });
      const response = await fetch("/v1/session/calls", { method: "POST", headers, body });
      const answer = await response.json();
      if (pc !== this.pc) return;
      if (answer.error) {
        message({ type: "error", ...answer.error });
        this.closed(response.status === 503 ? 1013 : 1008);
        return;
      }
      joined(answer.session);
      await pc.setRemoteDescription({ type: "answer", sdp: answer.sdp });
    } catch (error) {
      if (this.pc) this.closed(GONE, error.message);
    }
  }

  opened() {
    clearTimeout(this.timer);
    this.connected = true;
    this.watch = setInterval(() => this.measure(), WATCH_MS);
  }

  changed() {
    const state = this.pc?.connectionState;
    if (state === "failed") this.closed(GONE, "no way through");
    if (!this.connected) return;
    clearTimeout(this.timer);
    if (state === "disconnected") this.timer = setTimeout(() => this.closed(GONE), AWAY_MS);
  }

  async measure() {
    for (const report of (await this.pc?.getStats())?.values() ?? []) {
      if (report.type === "candidate-pair" && report.nominated) this.rtt = (report.currentRoundTripTime || 0) * 1000;
    }
  }

  // What the user says and shows, from now on. shape: of the model's picture
  async show({ audio, video }, shape) {
    await Promise.all([this.senders.audio.replaceTrack(audio), this.senders.video.replaceTrack(video)]);
    if (!video) return;
    const { width, height } = video.getSettings();
    const parameters = this.senders.video.getParameters();
    for (const encoding of parameters.encodings) {
      encoding.maxBitrate = CAMERA_BITS;
      encoding.scaleResolutionDownBy = Math.max(1, Math.min(width / shape.width, height / shape.height) || 1);
    }
    await this.senders.video.setParameters(parameters);
  }

  send(message) { if (this.channel.readyState === "open") this.channel.send(JSON.stringify(message)); }

  close() {
    clearTimeout(this.timer);
    clearInterval(this.watch);
    const { pc } = this;
    this.pc = null;
    if (!pc) return;
    this.channel.onclose = this.channel.onmessage = pc.onconnectionstatechange = null;
    pc.close();
  }
}

// Asks for little in the agent's pauses: after one the jitter buffer begins anew, as short as the network lets it be.
function sparing(sdp) { return sdp.replaceAll("useinbandfec=1", "useinbandfec=1;usedtx=1"); }
