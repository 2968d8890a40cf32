// A Go client from generated stubs, as a team writes it. As programs/triton.py: a line of JSON a call.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
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

func main() {
	connection, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		panic(err)
	}
	defer connection.Close()
	client := inference.NewGRPCInferenceServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
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
	infer("timeout", request("sleepy", "seconds", "FP32", []int64{1}, floats(2)), short)
}
