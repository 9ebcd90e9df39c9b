"""What the tests share: real programs, fakes, clients, and tools that write files of the project."""
