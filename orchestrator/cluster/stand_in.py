"""Stand-in: a process in the place of an agent of Ray that nobody here asks anything; it ends when Ray does."""

import os
import time

if __name__ == "__main__":
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1)
