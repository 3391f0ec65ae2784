"""Tables and figures: frames in, text or figures out. Never touches a model."""
