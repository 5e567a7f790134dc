// A page that is opened from the disk may start no worker; the search's runs in a frame of its own instead.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      const waiting = [], frame = document.createElement("iframe");
      this.postMessage = (data) => waiting.push(data);
      frame.hidden = true;
      frame.onload = () => {
        const worker = frame.contentWindow, script = worker.document.createElement("script");
        const send = (target, data) => target.dispatchEvent(new MessageEvent("message", { data }));
        worker.postMessage = (data) => send(this, data);
        script.onload = () => {
          this.postMessage = (data) => send(worker, data);
          waiting.forEach(this.postMessage);
        };
        script.src = new URL(address, location);
        worker.document.body.append(script);
      };
      frame.srcdoc = "<body></body>";
      document.documentElement.append(frame);
    }
  };
}
