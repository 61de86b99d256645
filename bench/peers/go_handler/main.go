// A compiled handler with the standard library alone: server-sent events in, plain text out, one flush a token.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"log"
	"net/http"
	"os"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type prompt struct {
	Model     string    `json:"model"`
	MaxTokens int       `json:"max_tokens"`
	Stream    bool      `json:"stream"`
	Messages  []message `json:"messages"`
}

type event struct {
	Type  string `json:"type"`
	Delta struct {
		Type string `json:"type"`
		Text string `json:"text"`
	} `json:"delta"`
}

var upstream = os.Getenv("ANTHROPIC_BASE_URL") + "/v1/messages"

func ask(request *http.Request) (*http.Response, error) {
	body, err := json.Marshal(prompt{
		Model:     "bench",
		MaxTokens: 4096,
		Stream:    true,
		Messages:  []message{{Role: "user", Content: request.URL.Query().Get("q")}},
	})
	if err != nil {
		return nil, err
	}
	post, err := http.NewRequestWithContext(request.Context(), "POST", upstream, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	post.Header.Set("Content-Type", "application/json")
	post.Header.Set("X-Api-Key", os.Getenv("ANTHROPIC_API_KEY"))
	post.Header.Set("Anthropic-Version", "2023-06-01")
	return http.DefaultClient.Do(post)
}

func stream(writer http.ResponseWriter, request *http.Request) {
	answer, err := ask(request)
	if err != nil {
		http.Error(writer, "upstream unreachable", http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		http.Error(writer, "upstream refused", http.StatusBadGateway)
		return
	}
	writer.Header().Set("Content-Type", "text/plain; charset=utf-8")
	flusher := writer.(http.Flusher)
	complete := false
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		data := bytes.TrimPrefix(lines.Bytes(), []byte("data: "))
		if len(data) == len(lines.Bytes()) {
			continue
		}
		var event event
		if json.Unmarshal(data, &event) != nil {
			break
		}
		if event.Type == "content_block_delta" && event.Delta.Type == "text_delta" {
			writer.Write([]byte(event.Delta.Text))
			flusher.Flush()
		}
		complete = complete || event.Type == "message_stop"
	}
	if !complete {
		panic(http.ErrAbortHandler) // cuts the connection: a cut answer must not look complete
	}
}

func main() {
	http.HandleFunc("/stream", stream)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil))
}
