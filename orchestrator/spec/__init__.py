"""The job file: its types, how it is read, what it means in numbers, and what it promises."""
