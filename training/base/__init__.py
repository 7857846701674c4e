"""What all of training stands on: errors, settings, process group, number formats, random numbers, contact
sheets."""
