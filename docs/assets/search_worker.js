// Browsers start no worker from a file on disk, so that the search of pages opened with
// file:// would find nothing. There a hidden frame does the worker's work.
(() => {
  "use strict";
  if (location.protocol !== "file:") return;

  function inFrame() {
    self.importScripts = (...addresses) =>
      addresses.reduce(
        (before, address) =>
          before.then(
            () =>
              new Promise((loaded) => {
                const script = document.createElement("script");
                script.src = address;
                script.onload = loaded;
                document.body.append(script);
              }),
          ),
        Promise.resolve(),
      );
    self.postMessage = (data) => parent.postMessage(data, "*");
  }

  class FrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const page = this.frame.contentWindow;
      addEventListener("message", (event) => {
        if (event.source !== page) return;
        const message = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      });
      page.document.open();
      page.document.write(
        `<body><script>(${inFrame})()</script><script src="${address}"></script></body>`,
      );
      page.document.close(); // open() forgets who waits for onload
      this.ready = new Promise((loaded) => (page.onload = loaded));
    }

    postMessage(data) {
      this.ready.then(() => {
        const copy = structuredClone(data);
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data: copy }));
      });
    }

    terminate() {
      this.frame.remove();
    }
  }

  window.IFrameWorker = window.Worker = FrameWorker;
})();
