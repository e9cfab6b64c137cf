"""Files of prompts: validated, fed to the batch lane, and their answers collected, by RQ jobs that may die anywhere."""
