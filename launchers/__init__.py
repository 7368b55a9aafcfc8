"""Where and how a job is started, and the command line on top of it all."""
