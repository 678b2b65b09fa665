// The agent as a stream: the browser plays sound and picture in step; what is left is muting, and a meter.

const METER_MS = 20;
const QUIET = 1e-3;
const FLUSH_UNITS = 2; // after which nothing of before the flush is in the browser any more

export class TrackPlayer {
  constructor(context, stream, media) {
    this.context = context;
    this.media = media; // <video>
    this.stats = { rms: 0, peak: 0, queued: 0, gaps: 0, skipped: 0, delay: 0, flushes: 0, flushedMs: 0 };
    this.asked = []; // flushes under way
    this.hold = 0; // units for which it stays muted
    this.analyser = new AnalyserNode(context, { fftSize: 1024 });
    this.samples = new Float32Array(this.analyser.fftSize);
    this.timer = setInterval(() => this.meter(), METER_MS);
    media.hidden = false;
    this.play(stream);
  }

  get running() { return this.context.state === "running"; }

  play(stream) {
    this.source?.disconnect();
    this.source = this.context.createMediaStreamSource(stream);
    this.source.connect(this.analyser);
    this.media.srcObject = stream;
    this.resume();
  }

  // Browsers play no sound before a gesture; pictures they do.
  resume() {
    this.silent = false;
    this.media.muted = false;
    this.media.play().catch(() => {
      this.silent = this.media.muted = true;
      this.media.play().catch(() => {});
    });
  }

  get frames() { return this.media.getVideoPlaybackQuality().totalVideoFrames; }

  // A unit has come. muted: it belongs to what was cancelled
  unit(muted) {
    if (this.hold > 0) this.hold--;
    this.media.muted = this.silent || muted || this.hold > 0;
  }

  // Silence at once. The promise is kept when the stream itself is quiet.
  flush() {
    this.media.muted = true;
    this.hold = FLUSH_UNITS;
    this.stats.flushes++;
    return new Promise((done) => this.asked.push(done));
  }

  meter() {
    this.analyser.getFloatTimeDomainData(this.samples);
    const rms = Math.sqrt(this.samples.reduce((sum, x) => sum + x * x, 0) / this.samples.length);
    this.stats.rms = rms;
    this.stats.peak = Math.max(this.stats.peak, rms);
    if (rms < QUIET) this.asked.splice(0).forEach((done) => done());
  }

  close() {
    clearInterval(this.timer);
    this.source.disconnect();
    this.media.srcObject = null;
    this.media.hidden = true;
  }
}
