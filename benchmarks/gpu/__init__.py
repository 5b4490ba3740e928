"""What a GPU machine is asked once: does everything compute what it should there, and how fast (`__main__`)."""
