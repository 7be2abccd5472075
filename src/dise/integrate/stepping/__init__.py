"""Step-size control and the integration loop."""
