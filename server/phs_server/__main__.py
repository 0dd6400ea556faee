from phs_server.app import main

if __name__ == "__main__":
    main()
