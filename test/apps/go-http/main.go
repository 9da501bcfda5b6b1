// A server of the standard library's net/http: GET /count says how many requests its connection had and how many there
// were in all, GET /stream writes numbered lines without an end. Argument: where to listen.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

type key struct{}

func main() {
	var total atomic.Int64
	http.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		here := r.Context().Value(key{}).(*atomic.Int64)
		fmt.Fprintf(w, "%d %d", here.Add(1), total.Add(1))
	})
	http.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		for n := 1; r.Context().Err() == nil; n++ {
			fmt.Fprintf(w, "%d\n", n)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	})
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		panic(err)
	}
	server := http.Server{ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, key{}, new(atomic.Int64))
	}}
	panic(server.Serve(listener))
}
