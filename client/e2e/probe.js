// Runs in the page before its own scripts: takes down what leaves the microphone, what reaches loudspeaker and screen,
// and what the gateway says of each unit. All times are seconds of the page's audio clock.

(() => {
  const GRID = 8; // pixels a side of the picture that is compared
  const LOOK_MS = 25; // between two pictures; the agent has one every 40 ms
  const BLOCK = 40; // quanta of 128 samples in a message
  const SOURCE = `registerProcessor("probe", class extends AudioWorkletProcessor {
    constructor() { super(); this.peaks = []; }
    process([input]) {
      if (!this.peaks.length) this.start = currentTime;
      let peak = 0;
      for (const x of input[0] ?? []) peak = Math.max(peak, Math.abs(x));
      this.peaks.push(peak);
      if (this.peaks.length === ${BLOCK}) {
        this.port.postMessage({ start: this.start, peaks: this.peaks });
        this.peaks = [];
      }
      return true;
    }
  });`;
  const url = URL.createObjectURL(new Blob([SOURCE], { type: "text/javascript" }));
  const seen = { mic: [], out: [], pictures: [], units: [], captions: [] };
  let context = null;
  let ready = null;
  let peer = null;
  const connect = AudioNode.prototype.connect;
  const now = () => context.currentTime;

  window.AudioContext = class extends AudioContext {
    constructor(...options) {
      super(...options);
      context = this;
      ready = this.audioWorklet.addModule(url);
    }
  };

  async function listen(name, node) {
    await ready;
    const tap = new AudioWorkletNode(context, "probe", { numberOfOutputs: 1 });
    tap.port.onmessage = ({ data }) => seen[name].push([data.start, data.peaks.map((x) => Math.round(x * 1e4))]);
    connect.call(node, tap);
    connect.call(tap, context.destination); // it puts out silence
  }

  AudioNode.prototype.connect = function (to, ...more) {
    if (to instanceof AudioDestinationNode && this.numberOfInputs === 0) listen("out", this); // the page's player
    return connect.call(this, to, ...more);
  };

  const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (wanted) => {
    const stream = await ask(wanted);
    listen("mic", context.createMediaStreamSource(stream.clone()));
    return stream;
  };

  const property = Object.getOwnPropertyDescriptor(HTMLMediaElement.prototype, "srcObject");
  Object.defineProperty(HTMLMediaElement.prototype, "srcObject", {
    ...property,
    set(stream) {
      property.set.call(this, stream);
      if (stream && this.id === "face") listen("out", context.createMediaStreamSource(stream));
    },
  });

  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(...options) {
      super(...options);
      peer = this;
    }
  };

  const parse = JSON.parse;
  JSON.parse = (text, ...more) => {
    const m = parse(text, ...more);
    if (m?.type === "unit") seen.units.push({ at: now(), unit: m.unit, state: m.state, ms: m.ms, gateway: m.gateway, held: m.held });
    if (m?.type === "caption") seen.captions.push([m.unit, m.text]);
    return m;
  };

  const canvas = new OffscreenCanvas(GRID, GRID);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  let looked = 0;
  (function look() {
    requestAnimationFrame(look);
    if (performance.now() - looked < LOOK_MS) return;
    looked = performance.now();
    const face = document.getElementById("face");
    const picture = face && !face.hidden ? face : document.getElementById("agent");
    if (context && picture && seen.units.length) {
      pen.drawImage(picture, 0, 0, GRID, GRID);
      const { data } = pen.getImageData(0, 0, GRID, GRID);
      seen.pictures.push([now(), Array.from({ length: GRID * GRID }, (_, i) => data[4 * i + 1])]);
    }
  })();

  // Everything so far. buffered: mean milliseconds in the browser's jitter buffer; concealed: share of made-up samples.
  window.probe = async () => {
    const out = { ...seen, latency: (context.baseLatency + (context.outputLatency || 0)) * 1e3, buffered: null, concealed: 0 };
    for (const report of (await peer?.getStats())?.values() ?? []) {
      if (report.type !== "inbound-rtp" || report.kind !== "audio") continue;
      out.buffered = (report.jitterBufferDelay / report.jitterBufferEmittedCount) * 1e3;
      out.concealed = report.concealedSamples / report.totalSamplesReceived;
    }
    if (!peer) out.buffered = wan.stats().player.queued;
    return out;
  };
})();
