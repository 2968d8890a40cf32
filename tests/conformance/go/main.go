// A Go client from generated stubs, as a team writes it. As programs/triton.py: a line of JSON a call.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"dormouse.dev/conformance/inference"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func say(call string, result any, err error) {
	answer := map[string]any{"call": call, "result": result}
	if err != nil {
		answer = map[string]any{"call": call, "error": status.Convert(err).Message(), "code": status.Code(err).String()}
	}
	line, _ := json.Marshal(answer)
	fmt.Println(string(line))
}

func floats(values ...float32) []byte {
	out := make([]byte, 0, 4*len(values))
	for _, value := range values {
		out = binary.LittleEndian.AppendUint32(out, math.Float32bits(value))
	}
	return out
}

func request(model, name, datatype string, shape []int64, raw []byte) *inference.ModelInferRequest {
	tensor := &inference.ModelInferRequest_InferInputTensor{Name: name, Datatype: datatype, Shape: shape}
	return &inference.ModelInferRequest{ModelName: model, Inputs: []*inference.ModelInferRequest_InferInputTensor{tensor}, RawInputContents: [][]byte{raw}}
}

func decode(raw []byte) [][]float32 {
	row := []float32{}
	for at := 0; at+4 <= len(raw); at += 4 {
		row = append(row, math.Float32frombits(binary.LittleEndian.Uint32(raw[at:])))
	}
	return [][]float32{row}
}

// Of each answer the id and the first number of its first output, or the text of an error that came in the stream.
func streamed(client inference.GRPCInferenceServiceClient, ctx context.Context, requests ...*inference.ModelInferRequest) ([][]any, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.ModelStreamInfer(ctx)
	if err != nil {
		return nil, err
	}
	for _, in := range requests {
		if err := stream.Send(in); err != nil && err != io.EOF {
			return nil, err
		}
	}
	stream.CloseSend()
	found := [][]any{}
	for {
		response, err := stream.Recv()
		if err == io.EOF {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		if response.ErrorMessage != "" {
			found = append(found, []any{response.ErrorMessage})
			continue
		}
		reply, raw := response.InferResponse, response.InferResponse.RawOutputContents[0]
		if reply.Outputs[0].Datatype == "FP32" {
			found = append(found, []any{reply.Id, math.Float32frombits(binary.LittleEndian.Uint32(raw))})
		} else {
			found = append(found, []any{reply.Id, int64(binary.LittleEndian.Uint64(raw))})
		}
	}
}

func first(found [][]any) any {
	if len(found) != 1 {
		return found
	}
	return found[0]
}

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	client := inference.NewGRPCInferenceServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 240*time.Second)
	defer cancel()

	live, err := client.ServerLive(ctx, &inference.ServerLiveRequest{})
	say("server live", live.GetLive(), err)
	ready, err := client.ServerReady(ctx, &inference.ServerReadyRequest{})
	say("server ready", ready.GetReady(), err)
	model, err := client.ModelReady(ctx, &inference.ModelReadyRequest{Name: "double"})
	say("model ready", model.GetReady(), err)

	double := request("double", "x", "FP32", []int64{1, 4}, floats(1, 2, 3, 4))
	infer := func(call string, in *inference.ModelInferRequest, ctx context.Context, options ...grpc.CallOption) {
		reply, err := client.ModelInfer(ctx, in, options...)
		if err != nil {
			say(call, nil, err)
			return
		}
		say(call, decode(reply.RawOutputContents[0]), nil)
	}
	infer("infer", double, ctx)
	infer("infer gzip", double, ctx, grpc.UseCompressor(gzip.Name))

	step := func(call string, value int64, flag string) {
		raw := binary.LittleEndian.AppendUint64(nil, uint64(value))
		in := request("sequence", "INPUT", "INT64", []int64{1, 1}, raw)
		in.Parameters = map[string]*inference.InferParameter{"sequence_id": {ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: 7777}}}
		if flag != "" {
			in.Parameters[flag] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: true}}
		}
		reply, err := client.ModelInfer(ctx, in)
		if err != nil {
			say(call, nil, err)
			return
		}
		numbers := []int64{}
		for _, part := range reply.RawOutputContents {
			for at := 0; at+8 <= len(part); at += 8 {
				numbers = append(numbers, int64(binary.LittleEndian.Uint64(part[at:])))
			}
		}
		say(call, numbers, nil)
	}
	step("sequence start", 5, "sequence_start")
	step("sequence go on", 1, "")
	step("sequence end", 1, "sequence_end")
	step("sequence unknown", 1, "")

	session := metadata.AppendToOutgoingContext(ctx, "dormouse-session", "go")
	one := request("counter", "x", "FP32", []int64{1, 1}, floats(1))
	for range 2 {
		client.ModelInfer(session, one)
	}
	infer("session by header", one, session)
	infer("stateful without a session", one, ctx)
	infer("unknown model", request("none", "x", "FP32", []int64{1, 1}, floats(1)), ctx)
	infer("wrong shape", request("double", "x", "FP32", []int64{1, 5}, floats(1, 2, 3, 4, 5)), ctx)
	short, end := context.WithTimeout(ctx, 200*time.Millisecond)
	defer end()
	text := func(model, session string) *inference.ModelInferRequest {
		in := request(model, "x", "FP32", []int64{1, 1}, floats(1))
		if session != "" {
			in.Parameters = map[string]*inference.InferParameter{"sequence_id": {ParameterChoice: &inference.InferParameter_StringParam{StringParam: session}}}
		}
		return in
	}
	large := request("double", "x", "FP32", []int64{1, 17 << 18}, make([]byte, 17<<20))
	long := strings.Repeat("x", 129)
	infer("session id too long", text("counter", long), ctx)
	infer("stopped", text("stopped", ""), ctx)
	infer("hold expired", text("stuck", ""), ctx)
	infer("too large", large, ctx)

	asked := func(sequence, value int64, id, flag string) *inference.ModelInferRequest {
		in := request("sequence", "INPUT", "INT64", []int64{1, 1}, binary.LittleEndian.AppendUint64(nil, uint64(value)))
		in.Id = id
		in.Parameters = map[string]*inference.InferParameter{"sequence_id": {ParameterChoice: &inference.InferParameter_Int64Param{Int64Param: sequence}}}
		if flag != "" {
			in.Parameters[flag] = &inference.InferParameter{ParameterChoice: &inference.InferParameter_BoolParam{BoolParam: true}}
		}
		return in
	}
	stream := func(call string, ctx context.Context, requests ...*inference.ModelInferRequest) {
		found, err := streamed(client, ctx, requests...)
		say(call, found, err)
	}
	double.Id = "an id"
	found, err := streamed(client, ctx, double)
	say("stream", first(found), err)
	stream("stream sequence", ctx, asked(7778, 5, "a", "sequence_start"), asked(7778, 1, "b", ""), asked(7778, 1, "c", "sequence_end"))
	// Two sessions, so the two may come in either order.
	found, err = streamed(client, ctx, asked(1, 1, "lost", ""), asked(7779, 2, "next", "sequence_start"))
	if len(found) == 2 && len(found[0]) == 1 {
		say("stream error", append(found[0], found[1]...), err)
	} else if len(found) == 2 {
		say("stream error", append(found[1], found[0]...), err)
	} else {
		say("stream error", found, err)
	}
	alone := func(call string, in *inference.ModelInferRequest) {
		found, err := streamed(client, ctx, in)
		say(call, first(found), err)
	}
	alone("stream unknown model", text("none", ""))
	alone("stream stopped function", text("stopped", ""))
	alone("stream hold expired", text("stuck", ""))
	alone("stream session id too long", text("counter", long))
	asStatus := metadata.AppendToOutgoingContext(ctx, "triton_grpc_error", "true")
	stream("stream error as status", asStatus, asked(1, 1, "lost", ""))
	stream("stream unknown model as status", asStatus, text("none", ""))
	stream("stream stopped function as status", asStatus, text("stopped", ""))
	stream("stream too large", ctx, large)
	soon, done := context.WithTimeout(ctx, 500*time.Millisecond)
	defer done()
	stream("stream timeout", soon, request("sleepy", "seconds", "FP32", []int64{1}, floats(3)))

	infer("timeout", request("sleepy", "seconds", "FP32", []int64{1}, floats(2)), short)
}
