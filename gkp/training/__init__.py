"""One training loop: recipe, callbacks, log, and a checkpoint from which a killed training resumes bit for bit."""
