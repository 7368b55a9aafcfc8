"""From a job file to a trained model: the parts of one worker, and the job file itself."""
