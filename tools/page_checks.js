// What tools/check_book.py asks of a page inside the browser. Each function returns a list of
// complaints, except settled() and hits().

// Is the page ready to be looked at? MathJax has no "finished" flag: a promise sets ours.
function settled() {
    if (document.readyState !== "complete") return false;
    if (document.querySelector("meta[http-equiv=refresh]")) return false; // on its way elsewhere
    if (!document.querySelector(".math")) return true;
    const startup = window.MathJax && window.MathJax.startup;
    if (!startup || !startup.promise) return false;
    if (startup.settled === undefined) {
        startup.settled = false;
        startup.promise.then(() => { startup.settled = true; });
    }
    return startup.settled;
}

// Formulas that are still TeX, that MathJax refused, or that use an unknown command (it is red).
function mathematics() {
    const complaints = [];
    for (const formula of document.querySelectorAll(".math"))
        if (!formula.querySelector("mjx-container"))
            complaints.push("not typeset: " + formula.textContent);
    for (const part of document.querySelectorAll("mjx-merror, mjx-container [style*='color: red']"))
        complaints.push("MathJax error: " + (part.closest(".math") || part).textContent);
    return complaints.map(text => text.slice(0, 120));
}

// What is wider than the page, unless it scrolls inside itself.
function sideways() {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width + 1) return [];
    const wide = [...document.querySelectorAll("article *")].filter(element =>
        element.getBoundingClientRect().left + element.scrollWidth > width + 1
        && !element.closest("pre, table, .cell_output, .math"));
    return (wide.length ? wide : [document.body]).slice(-3).map(element =>
        `${element.tagName.toLowerCase()}.${element.className} `
        + element.textContent.trim().slice(0, 40));
}

// Visible text below WCAG's contrast of 4.5, the worst of each kind of element.
function contrast() {
    const rgba = text => (text.match(/[\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const over = (top, below) => {
        const alpha = top.length > 3 ? top[3] : 1;
        return [0, 1, 2].map(i => alpha * top[i] + (1 - alpha) * below[i]);
    };
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = colour => {
        const [r, g, b] = colour.map(c => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = element => {
        const layers = [];
        for (let e = element; e; e = e.parentElement)
            layers.unshift(rgba(getComputedStyle(e).backgroundColor));
        return layers.reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    // Decoration, and what only a screen reader gets.
    const skipped = "script, style, kbd, .search-button__kbd-shortcut, .headerlink, "
        + "mjx-assistive-mml";

    const worst = new Map();
    const page = document.querySelector("article.bd-article") || document.querySelector("main");
    if (!page) return [];
    const texts = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
        if (!text || !element.checkVisibility() || element.closest(skipped)) continue;
        const behind = background(element);
        const lights = [luminance(over(rgba(getComputedStyle(element).color), behind)),
                        luminance(behind)];
        const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
        const kind = [element.tagName.toLowerCase(), ...element.classList].join(".");
        if (ratio < 4.5 && !(worst.get(kind)?.ratio <= ratio)) worst.set(kind, { ratio, text });
    }
    return [...worst].map(([kind, { ratio, text }]) =>
        `${kind} has contrast ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
}

// Pictures that did not load.
function pictures() {
    return [...document.images].filter(image => image.src && !image.naturalWidth)
        .map(image => "not loaded: " + image.src);
}

// The addresses a search found.
function hits() {
    return [...document.querySelectorAll("#search-results li a, ul.search li a")].map(a => a.href);
}
