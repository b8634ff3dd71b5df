"use strict";
// One OpenSeadragon viewer a bag: the slide, and the map of scores over it with an opacity of its own.
(() => {
  const bags = JSON.parse(document.getElementById("bags").textContent);
  const floats = (text) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Float32Array(bytes.buffer);
  };
  const image = (url) => ({ type: "image", url, buildPyramid: false });
  window.qgmilViewers = [];
  for (const element of document.querySelectorAll(".viewer")) {
    const bag = bags[Number(element.dataset.bag)], section = element.closest("section");
    const x = floats(bag.x), y = floats(bag.y), weights = floats(bag.weights), ranks = floats(bag.ranks);
    const said = section.querySelector("output");
    const viewer = OpenSeadragon({
      element, prefixUrl: "", showNavigationControl: false, drawer: "canvas", tileSources: image(bag.base),
      maxZoomPixelRatio: 16, visibilityRatio: 0.5, gestureSettingsMouse: { clickToZoom: false },
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4,
    });
    window.qgmilViewers.push(viewer);
    viewer.addHandler("open", () => {
      viewer.addTiledImage({
        tileSource: image(bag.heat), opacity: bag.opacity,
        success: ({ item }) => {
          viewer.drawer.setImageSmoothingEnabled(false);
          viewer.heat = item;
          element.dataset.ready = "yes";
        },
      });
    });
    const show = (clientX, clientY) => {
      const box = element.getBoundingClientRect();
      const at = new OpenSeadragon.Point(clientX - box.left, clientY - box.top);
      const item = viewer.world.getItemAt(0);
      if (!item) return;
      const p = item.viewerElementToImageCoordinates(at);
      const px = p.x / bag.scale + bag.origin[0], py = p.y / bag.scale + bag.origin[1];
      let best = -1;
      for (let i = 0; i < x.length; i++) {
        const dx = px - x[i], dy = py - y[i];
        if (dx < 0 || dy < 0 || dx >= bag.edge || dy >= bag.edge) continue;
        if (best < 0 || ranks[i] < ranks[best]) best = i;
      }
      said.textContent = best < 0 ? "no tile here"
        : `tile ${best}: ${bag.name} ${weights[best].toPrecision(3)}, rank ${ranks[best]} of ${x.length}`;
    };
    element.addEventListener("pointermove", (event) => show(event.clientX, event.clientY));
    element.addEventListener("pointerdown", (event) => show(event.clientX, event.clientY));
    section.querySelector("[data-act=opacity]").addEventListener("input", (event) => {
      if (viewer.heat) viewer.heat.setOpacity(Number(event.target.value) / 100);
    });
    const act = { in: () => viewer.viewport.zoomBy(1.5), out: () => viewer.viewport.zoomBy(1 / 1.5),
                  home: () => viewer.viewport.goHome() };
    for (const button of section.querySelectorAll("button[data-act]")) {
      button.addEventListener("click", () => { act[button.dataset.act](); viewer.viewport.applyConstraints(); });
    }
  }
})();
