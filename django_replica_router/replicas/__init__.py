"""What is known of servers: settings of databases go in, how far each replica is and a connection to it come out."""
