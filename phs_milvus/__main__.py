from phs_milvus.cli import main

if __name__ == "__main__":
    main()
