// What waits for a person: a card for each question. Its value comes from agent/web/approval_panel.py; `submit` tells an
// answer with the question that it is for, `select` a protocol to look at.

export function start({ element, props, watch, trigger }) {
  const place = element.querySelector(".mewm-approvals-place");
  const known = new Map(); // card by its question: what was typed stays there while another turn goes on

  function cardOf({ interrupt, html }) {
    const before = known.get(interrupt);
    if (before?.html === html) return before.node;
    const node = document.createElement("section");
    node.className = "card";
    node.setAttribute("aria-label", "A question that waits for you");
    node.innerHTML = html;
    known.set(interrupt, { html, node });
    return node;
  }

  function draw() {
    const { cards, problem } = props.value;
    const nodes = cards.map(cardOf);
    if (nodes.length !== place.children.length || nodes.some((node, at) => node !== place.children[at])) {
      place.replaceChildren(...nodes);
    }
    cards.forEach(({ interrupt }, at) => {
      nodes[at].querySelector(".told").innerHTML = problem?.interrupt === interrupt ? problem.html : "";
    });
  }

  function answer(card, decision) {
    const text = (name) => card.querySelector(`[name=${name}]`)?.value ?? "";
    trigger("submit", {
      interrupt: card.querySelector("[data-interrupt]").dataset.interrupt,
      decision,
      reason: text("reason"),
      items: [...card.querySelectorAll("[name=items]:checked")].map((box) => box.value),
      protocol: text("protocol"),
      override: text("override"),
    });
  }

  place.addEventListener("click", (event) => {
    const button = event.target.closest("[data-decision]");
    if (button) answer(button.closest(".card"), button.dataset.decision);
    const protocol = event.target.closest("[data-protocol]");
    if (protocol) trigger("select", { protocol: protocol.dataset.protocol });
  });
  draw();
  watch("value", draw);
}
