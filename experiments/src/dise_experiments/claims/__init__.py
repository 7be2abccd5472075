"""The paper's claims beside committed results: the page docs/paper.md."""
