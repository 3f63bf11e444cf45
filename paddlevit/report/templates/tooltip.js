// Shows the values under the pointer; without this the browser's own tooltips on the points do.
(function () {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  function nearest(circles, x) {
    return circles.reduce(function (best, circle) {
      return Math.abs(circle.cx.baseVal.value - x) < Math.abs(best.cx.baseVal.value - x) ? circle : best;
    });
  }

  document.querySelectorAll(".chart > svg").forEach(function (chart) {
    const curves = Array.from(chart.querySelectorAll(".curve"), function (curve) {
      return Array.from(curve.querySelectorAll("circle"));
    });
    curves.flat().forEach(function (circle) {
      const title = circle.querySelector("title");
      circle.setAttribute("aria-label", title.textContent);
      title.remove();
    });
    let marked = [];

    function hide() {
      marked.forEach(function (circle) { circle.classList.remove("near"); });
      marked = [];
      tip.hidden = true;
    }

    function move(event) {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const near = curves.map(function (circles) { return nearest(circles, place.x); });
      const middle = nearest(near, place.x).cx.baseVal.value;
      hide();
      marked = near.filter(function (circle) { return Math.abs(circle.cx.baseVal.value - middle) < 6; });
      marked.forEach(function (circle) { circle.classList.add("near"); });
      tip.textContent = marked.map(function (circle) { return circle.getAttribute("aria-label"); }).join("\n");
      tip.hidden = false;
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = Math.max(8, Math.min(event.clientX + 14, room)) + "px";
      tip.style.top = Math.max(8, event.clientY - tip.offsetHeight - 14) + "px";
    }

    chart.addEventListener("pointermove", move);
    chart.addEventListener("pointerdown", move);
    chart.addEventListener("pointerleave", hide);
  });
})();
