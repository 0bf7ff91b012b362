// The button offers a notebook to be kept; without this, a browser shows its text in a new tab. Pages that
// were opened from a file stay as they are: there browsers allow no download.
document.addEventListener("DOMContentLoaded", () => {
  if (location.protocol === "file:") {
    return;
  }
  for (const link of document.querySelectorAll("a.btn-download-source-button")) {
    link.setAttribute("download", "");
    link.removeAttribute("target");
  }
});
