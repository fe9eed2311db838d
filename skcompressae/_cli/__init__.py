"""The command line: subcommands that parse, call the API and print, and the files they read and write."""
